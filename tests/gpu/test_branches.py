"""The branches that only CUDA enters, entered on a CPU; and a table that no such branch can be missing from."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gpu.branches import BRANCHES
from gpu.pretend_cuda import CPU, CUDA, CudaTensor, pretended_cuda

from saga_dist.config import RunConfig, parse_config
from saga_dist.errors import ConfigError
from saga_dist.models import weight_digest
from saga_dist.models.placement import checked_device
from saga_dist.runtime import build
from saga_dist.runtime.devices import choose_kernels, resolve_device
from saga_dist.workers import data_parallel

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "saga_dist"
OF_CUDA = re.compile(r"cuda|nccl|is_cpu", re.IGNORECASE)


# ---------------------------------------------------------------- the table


def functions_of_cuda() -> set[str]:
    """Functions whose code, without docstrings, mentions CUDA, as ``file::function``."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for name, function in functions(ast.parse(path.read_text("utf-8")), ""):
            own = [node for node in function.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
            code = [node for node in own if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
            if OF_CUDA.search("\n".join(map(ast.unparse, code))):
                found.add(f"{path.relative_to(PACKAGE).as_posix()}::{name}")
    return found


def functions(node: ast.AST, prefix: str) -> list[tuple[str, ast.FunctionDef]]:
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            found.append((prefix + child.name, child))
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            found += functions(child, f"{prefix}{child.name}.")
    return found


def test_every_branch_of_cuda_is_in_the_table() -> None:
    assert functions_of_cuda() == BRANCHES.keys()


def test_every_test_of_the_table_exists() -> None:
    for test in set(BRANCHES.values()):
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (TESTS / file).read_text("utf-8"), test


# ---------------------------------------------------------------- devices


def see_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: f"NVIDIA H200 {index}")


@pytest.mark.parametrize(
    ("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)], ids=["auto", "cuda", "first", "second"]
)
def test_every_cuda_device_has_an_index(name: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 2)
    assert resolve_device(name) == torch.device("cuda", index)
    assert resolve_device(name).index == index


def test_without_a_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 0)
    assert resolve_device("auto") == CPU
    see_gpus(monkeypatch, 2)
    assert resolve_device("cpu") == CPU


def test_a_device_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    see_gpus(monkeypatch, 2)
    with pytest.raises(
        ConfigError, match=r"'cuda:2' but 2 CUDA device\(s\) in this process \(CUDA_VISIBLE_DEVICES: 0,1"
    ):
        resolve_device("cuda:2")
    see_gpus(monkeypatch, 0)
    with pytest.raises(ConfigError, match="model.device = 'cuda' but no CUDA device .*; use \"auto\""):
        resolve_device("cuda")

    with pytest.raises(ConfigError, match="device = 'cuda:1' cannot be used"):
        checked_device("cuda:1")


def tiny_run(checkpoint: Path, **sections: dict[str, Any]) -> RunConfig:
    birds = {"train_classes": 4, "train_images_per_class": 2, "val_images_per_class": 2, "test_images_per_class": 2}
    tree: dict[str, dict[str, Any]] = {
        "data": {"layout": "birds", "image_size": 80, "batch_size": 8, "images_per_class": 2, "birds": birds},
        "model": {"path": str(checkpoint), "dtype": "bfloat16", "embedding_dim": 16},
        "objective": {"metric_loss": "proxy_anchor", "kl_layer": 1},
        "rollout": {"pairs_per_batch": 4},
    }
    return parse_config({**tree, **{name: tree.get(name, {}) | own for name, own in sections.items()}}, where="test")


def test_cudnn_attention_is_off_where_a_gpu_trains_or_replays(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[bool] = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", chosen.append)
    config = tiny_run(tiny_checkpoint)
    with pretended_cuda():
        worker = build.build_replay_worker(config)
        assert isinstance(next(worker._backbone.parameters()), CudaTensor)
        assert chosen == [False]
        learner = build.build_learner(config)
        assert learner.encoder.device == CUDA
    assert chosen == [False, False]
    choose_kernels(CPU)
    assert chosen == [False, False]


# ---------------------------------------------------------------- processes


def test_ranks_on_gpus_join_with_nccl_on_a_device_with_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpus(monkeypatch, 1)
    joined: dict[str, Any] = {}

    def set_device(device: torch.device) -> None:
        assert device.index is not None, "torch refuses a device without an index"
        joined["device"] = device

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **rest: joined.update(backend=backend, **rest))
    store = dist.HashStore()
    ranks = data_parallel.join(store, rank=0, size=2, device=resolve_device("auto"), timeout_s=3)
    assert (ranks.rank, ranks.size) == (0, 2)
    assert (joined["backend"], joined["device"], joined["world_size"]) == ("nccl", CUDA, 2)
    monkeypatch.delattr(torch.cuda, "set_device")
    data_parallel.join(store, rank=0, size=2, device=CPU, timeout_s=3)
    assert joined["backend"] == "gloo"


@pytest.mark.parametrize("theirs", [None, "max_split_size_mb:64"])
def test_learner_and_replay_actors_have_segments_that_grow(theirs: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "PYTORCH_CUDA_ALLOC_CONF"
    monkeypatch.delenv(name, raising=False)
    if theirs is not None:
        monkeypatch.setenv(name, theirs)
    expected = theirs or "expandable_segments:True"
    environments = environments_of_actors(monkeypatch)
    assert {actor: environment.get(name) for actor, environment in environments.items()} == {
        "LearnerActor": expected, "RankActor": expected, "ReplayActor": expected, "RolloutActor": theirs
    }  # fmt: skip


def environments_of_actors(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """The environment variables that each actor would be started with, by the name of its class."""
    from saga_dist.runtime.ray import actors
    from saga_dist.runtime.ray.learner_group import RankActor

    environments = {}

    def remote(**_: Any) -> Any:
        def of(actor_type: type) -> Any:
            def options(**given: Any) -> Any:
                environments[actor_type.__name__] = given["runtime_env"]["env_vars"]
                return SimpleNamespace(remote=lambda *_: None)

            return SimpleNamespace(options=options)

        return of

    monkeypatch.setattr(actors.ray, "remote", remote)
    config = parse_config({"data": {"layout": "birds", "image_size": 80}}, where="test")
    for actor_type in (actors.LearnerActor, RankActor, actors.ReplayActor, actors.RolloutActor):
        actors.spawn(actor_type, config, actors.Factories(), num_cpus=1, num_gpus=1)
    return environments


def test_rollout_actors_get_the_drivers_choice_of_vllms_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    assert environments_of_actors(monkeypatch)["RolloutActor"]["VLLM_USE_V2_MODEL_RUNNER"] == "0"


# ---------------------------------------------------------------- reports and digests


def test_the_digest_streams_from_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {name: torch.randn(count) for name, count in (("short", 3), ("long", 50), ("even", 16))}
    expected, key = weight_digest.hash_weights(weights), weight_digest.checksum(weights)
    monkeypatch.setattr(weight_digest, "BLOCK_BYTES", 64)
    with pretended_cuda():
        on_gpu = {name: tensor.to(CUDA) for name, tensor in weights.items()}
        assert weight_digest.hash_weights(on_gpu) == expected
        assert weight_digest.checksum(on_gpu) == key


def test_a_bench_names_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from saga_dist.bench.common import machine

    see_gpus(monkeypatch, 1)
    assert machine().device == "NVIDIA H200 0"


def test_the_doctor_names_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from saga_dist.cli.doctor_checks import _devices

    see_gpus(monkeypatch, 2)
    assert _devices().endswith("CPU cores; NVIDIA H200 0, NVIDIA H200 1")


def test_the_gpu_here_has_its_data_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    from saga_dist.estimate.rates import CARDS, choose_card, local_gpu

    see_gpus(monkeypatch, 1)
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=150_754_820_096)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    card = local_gpu()
    assert card is not None
    assert (card.operations, card.memory, card.on_gpu) == (CARDS["h200"].operations, 150_754_820_096, True)
    properties.name = "Tesla T4"
    with pytest.raises(ConfigError, match="the GPU here is a Tesla T4, whose data sheet is not known"):
        choose_card("auto", wants_gpu=True)


def test_limits_count_the_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from saga_dist.estimate.capacity import machine_limits
    from saga_dist.estimate.rates import CARDS

    see_gpus(monkeypatch, 3)
    assert machine_limits(tmp_path, CARDS["h200"]).gpus == 3
