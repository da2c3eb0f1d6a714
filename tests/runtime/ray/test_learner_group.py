"""A learner of two processes in the Ray runtime: the run of one process, and one error, not a hang, for a lost rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from safetensors.torch import load_file

from saga_dist.config import RunConfig, load_config, parse_config
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import LearnerLost, TokenError, WorkerError
from saga_dist.runtime.ray.adapter import Timeouts
from saga_dist.runtime.ray.fake_workers import FakeLearner, fake_factories
from saga_dist.runtime.ray.fault_plan import FaultPlan
from saga_dist.runtime.ray.learner_group import LearnerGroupActor
from saga_dist.runtime.ray.object_refs import ObjectHandle, fetch_tokens
from saga_dist.runtime.ray.remote_learner import RemoteLearner
from saga_dist.runtime.ray.runtime import RayRuntime
from saga_dist.runtime.stopping import StopRequest
from saga_dist.training.coordinator import Coordinator
from saga_dist.types import ImagePair, MicroBatch

pytestmark = pytest.mark.cluster

DEMO = Path(__file__).resolve().parents[3] / "saga_dist" / "standin" / "demo.toml"
STEPS = 2
SMALL = [
    f"run.steps={STEPS}",
    f"evaluation.every_steps={STEPS}",
    f"checkpoint.every_steps={STEPS}",
    "data.batch_size=16",
    "data.birds.val_images_per_class=2",
    "data.birds.test_images_per_class=2",
    "data.birds.probe_images=0",
    "rollout.engine=transformers",
    "rollout.pairs_per_batch=4",
    "rollout.num_cpus=0.5",
    "replay.workers=1",
    "replay.num_cpus=0.5",
    "runtime.learner_num_cpus=0.5",
    "runtime.pin_roles=true",
]


def scripted_config() -> RunConfig:
    return parse_config(
        {
            "data": {"layout": "birds", "image_size": 80},
            "objective": {"lambda_lm": 0.0, "lambda_kl": 0.0},
            "rollout": {"start_deadline_s": 300.0},
            "runtime": {"learner_processes": 2, "learner_num_cpus": 0.5, "threads": 1, "heartbeat_s": 10.0},
        },
        where="test",
    )


def batch(step: int) -> MicroBatch:
    pairs = tuple(ImagePair(f"s{step}.p{index}", index, index + 1, 0, index % 2) for index in range(5))
    return MicroBatch(step, 0, tuple(range(6)), (0,) * 6, 0, pairs)


@pytest.fixture
def make(ray_cluster: dict[str, str]) -> Iterator[Callable[..., RayRuntime]]:
    """Makes a runtime with two scripted ranks and no worker; closed after the test."""
    made: list[RayRuntime] = []

    def runtime(script: FaultPlan | None = None) -> RayRuntime:
        made.append(RayRuntime(scripted_config(), fake_factories(script)))
        return made[-1]

    yield runtime
    for each in made:
        each.close()


def ranks_alive() -> list[int]:
    """Process ids of the ranks in this cluster."""
    actors: list[dict[str, Any]] = list(ray._private.state.actors().values())
    return [actor["Pid"] for actor in actors if actor["ActorClassName"] == "RankActor" and actor["State"] == "ALIVE"]


def ended(pids: list[int], *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while running := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > deadline:
            return not running
        time.sleep(0.2)
    return True


def test_two_ranks_answer_as_one_learner(make: Callable[..., RayRuntime], tmp_path: Path) -> None:
    runtime, plain = make(), FakeLearner(scripted_config(), FaultPlan())
    pids = ranks_alive()
    assert len(pids) == 2
    assert runtime.learner.info is not None
    assert runtime.learner.info.pid in pids
    handles = runtime.learner.encode(batch(0)).handles
    assert all(isinstance(handle, ObjectHandle) for handle in handles)
    for opened, expected in zip(fetch_tokens(handles, deadline_s=60), plain.encode(batch(0)).handles, strict=True):
        np.testing.assert_array_equal(opened.values_NW.numpy(), expected.values_NW.numpy())
        assert opened.pair_id == expected.pair_id
    assert runtime.learner.finish_step([]).step == 1
    assert runtime.learner.step == 1
    runtime.learner.save(tmp_path)
    runtime.reset_learner(scripted_config())
    assert runtime.learner.step == 0
    runtime.learner.load(tmp_path)
    assert len(runtime.learner.encode(batch(1)).handles) == 5, "all ranks have loaded"
    np.testing.assert_array_equal(runtime.learner.embed("val").values_IE, np.eye(8))
    runtime.close()
    assert ended(pids, within_s=60), "ranks end with their group"


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("kill", LearnerLost, r"learner, rank [01]: its process died .*; the same command resumes"),
        pytest.param(
            "stop",
            LearnerLost,
            r"learner: no heartbeat for 10 s during encode; the same command resumes",
            marks=pytest.mark.slow,
        ),
        ("user_error", TokenError, r"^pair encode-0: width 7; expected width 6$"),
        ("bug", WorkerError, r"learner, rank [01]: ZeroDivisionError: scripted bug"),
    ],
)
def test_the_loss_of_one_rank_is_one_error_and_the_end_of_all(
    kind: Any, error: type[Exception], message: str, make: Callable[..., RayRuntime], tmp_path: Path
) -> None:
    script = FaultPlan(str(tmp_path))
    script.plan("encode-0", kind)  # strikes the rank that comes first; the other then waits in a collective
    runtime = make(script)
    pids = ranks_alive()
    with pytest.raises(error, match=message):
        runtime.learner.encode(batch(0))
    assert script.num_triggered("encode-0") == 1
    if kind == "stop":  # the harder of the two: its process is still there
        runtime.restart_learner()
        assert len(runtime.learner.encode(batch(0)).handles) == 5, "a new group in the place of the lost one"
    runtime.close()
    assert ended(pids, within_s=60)


@pytest.mark.slow
def test_two_processes_train_as_one(ray_cluster: dict[str, str], tmp_path: Path) -> None:
    results, weights = {}, {}
    for processes in (1, 2):
        config = load_config(DEMO, [*SMALL, f"runtime.learner_processes={processes}"])
        folder = tmp_path / str(processes)
        folder.mkdir()
        results[processes] = []
        with RayRuntime(config) as runtime:
            labels = runtime.learner.labels("train")
            sampler = ClassBalancedSampler(labels, config.data.batch_size, config.data.images_per_class, seed=0)
            Coordinator(config, runtime, sampler, folder, on_step=results[processes].append).run()
        weights[processes] = load_file(folder / "checkpoints" / f"step_{STEPS:08d}" / "learner.safetensors")
    for alone, several in zip(results[1], results[2], strict=True):
        for name in ("loss/dml", "loss/kl", "loss/grpo", "gradient/total_norm"):
            assert several.metrics[name] == pytest.approx(alone.metrics[name], rel=1e-4), name
        assert alone.metrics["loss/grpo"] != 0, "rollouts contributed"
    for name, tensor in weights[1].items():
        if name == "pooler.key.2.bias":  # moves every key alike, hence no weight: its gradient is rounding and no more
            continue
        assert (weights[2][name] - tensor).norm() < 2e-6 * tensor.norm(), name


class ToldActor:
    """Actor handle that keeps what it is told; its answers are no references, so waiting for one would fail."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.start = SimpleNamespace(remote=lambda: None)
        self.expect = SimpleNamespace(remote=self.told.append)


def test_every_rank_is_told_what_comes_next_and_nobody_waits() -> None:
    actor, ranks = ToldActor(), (ToldActor(), ToldActor())
    learner = RemoteLearner(lambda: actor, Timeouts(1, 1, 1), lambda: "", kill=lambda actor: None, stop=StopRequest())
    learner.expect((batch(0), batch(1)))
    group = object.__new__(LearnerGroupActor)
    group.ranks = ranks
    group.expect(*actor.told)
    assert [rank.told for rank in ranks] == [[[batch(0), batch(1)]]] * 2
