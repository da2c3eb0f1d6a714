"""The Ray runtime with scripted workers: the numbers of one process, payloads by reference, errors as themselves."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from saga_dist.config import RunConfig, parse_config
from saga_dist.errors import ConfigError, DataError, TokenError, TrainingError
from saga_dist.protocols import GradientHandle, Runtime
from saga_dist.runtime.ray.actor_table import nodes_of_role
from saga_dist.runtime.ray.draining import draining_nodes, nodes_with_state
from saga_dist.runtime.ray.fake_workers import (
    FakeLearner,
    FakeReplayWorker,
    FakeRolloutWorker,
    FaultPlan,
    fake_factories,
)
from saga_dist.runtime.ray.object_refs import LocalHandle, ObjectHandle, fetch_tokens, put_tokens
from saga_dist.runtime.ray.runtime import RayRuntime
from saga_dist.runtime.ray.scale_command import read_workers, request_scale, wait_for
from saga_dist.types import EncoderTokens, ImagePair, MicroBatch, ReplayTask, RolloutTask, Sampling, StepResult
from saga_dist.workers.serial_pool import SerialPool

pytestmark = pytest.mark.cluster

SAMPLING = Sampling(num_completions=4, temperature=0.7, top_p=0.95, max_tokens=8, seed=1)


def config(*, replay_workers: int = 0, **runtime: object) -> RunConfig:
    return parse_config(
        {
            "data": {"layout": "birds", "image_size": 80},
            "rollout": {"workers": 1, "num_cpus": 0.5, "start_deadline_s": 150.0},
            "replay": {"workers": replay_workers, "num_cpus": 0.5},
            "runtime": {"learner_num_cpus": 0.5, "threads": 1, **runtime},
        },
        where="test",
    )


def batch(step: int, number: int = 6) -> MicroBatch:
    pairs = tuple(ImagePair(f"s{step}.p{index}", index, index + 1, 0, index % 2) for index in range(number))
    return MicroBatch(step, 0, tuple(range(number + 1)), (0,) * (number + 1), 0, pairs)


def drain(pool: Any) -> list[Any]:
    results = []
    while arrived := pool.collect():
        results += arrived
    return results


def train_step(runtime: Runtime, step: int) -> StepResult:
    """One step with every group contributing, in the order of the pairs."""
    pairs = batch(step).pairs
    tokens = dict(zip(pairs, runtime.learner.encode(batch(step)).handles, strict=True))
    runtime.rollouts.submit([RolloutTask(pair, tokens[pair], SAMPLING) for pair in pairs])
    groups = {group.pair: group for group in drain(runtime.rollouts)}
    total = sum(group.num_tokens for group in groups.values())
    runtime.replays.submit([ReplayTask(groups[pair], tokens[pair], total, True) for pair in pairs])
    gradients = {gradient.pair_id: gradient for gradient in drain(runtime.replays)}
    return runtime.learner.finish_step([gradients[pair.pair_id].handle for pair in pairs])


class InThisProcess:
    """The same scripted workers without Ray."""

    def __init__(self) -> None:
        self.learner = FakeLearner(config(), FaultPlan())
        rollout, replay = FakeRolloutWorker(config(), FaultPlan()), FakeReplayWorker(config(), FaultPlan())
        self.rollouts: Any = SerialPool(
            lambda tasks: rollout.rollout(tasks, [task.tokens for task in tasks]), lease=16, max_attempts=1
        )
        self.replays: Any = SerialPool(
            lambda tasks: [GradientHandle.of(replay.replay(task, task.tokens)) for task in tasks],
            lease=1,
            max_attempts=1,
        )


Make = Callable[..., RayRuntime]


@pytest.fixture
def make(ray_cluster: dict[str, str]) -> Iterator[Make]:
    """Makes a runtime of scripted workers; closed after the test."""
    made: list[RayRuntime] = []

    def runtime(script: FaultPlan | None = None, **settings: Any) -> RayRuntime:
        made.append(RayRuntime(config(**settings), fake_factories(script)))
        return made[-1]

    yield runtime
    for each in made:
        each.close()


@pytest.mark.parametrize("replay_workers", [0, 1])
def test_three_steps_give_the_numbers_of_one_process(replay_workers: int, make: Make, tmp_path: Path) -> None:
    plain, runtime = InThisProcess(), make(replay_workers=replay_workers)
    for step in range(3):
        expected, found = train_step(plain, step), train_step(runtime, step)
        assert found == expected
        assert expected.metrics["step/groups"] == 6
    assert runtime.learner.step == 3
    assert runtime.backbone_digest() == "scripted"
    assert draining_nodes() == {} and not runtime.take_checkpoint_request()
    assert nodes_of_role("learner") == nodes_with_state() == {ray.get_runtime_context().get_node_id()}

    for learner, name in ((runtime.learner, "ray"), (plain.learner, "plain")):
        (tmp_path / name).mkdir()
        learner.save(tmp_path / name)
    saved = [(tmp_path / name / "learner.json").read_bytes() for name in ("ray", "plain")]
    assert saved[0] == saved[1]

    runtime.reset_learner(config())
    assert runtime.learner.step == 0, "a fresh learner, in the same process"
    runtime.learner.load(tmp_path / "ray")
    assert runtime.learner.step == 3


def test_coordinator_holds_references_and_embeddings_of_its_own(make: Make) -> None:
    runtime = make(replay_workers=1)
    pairs = batch(0).pairs
    handles = runtime.learner.encode(batch(0)).handles
    assert all(isinstance(handle, ObjectHandle) for handle in handles)
    assert [handle.pair_id for handle in handles] == [pair.pair_id for pair in pairs]
    runtime.rollouts.submit([RolloutTask(pairs[0], handles[0], SAMPLING)])
    (group,) = drain(runtime.rollouts)
    runtime.replays.submit([ReplayTask(group, handles[0], 10, True)])
    (gradient,) = drain(runtime.replays)
    assert isinstance(gradient.handle, ObjectHandle)
    # Owned by this process, the caller: the replay worker may die before the learner opens them.
    os.kill(runtime.replays.workers()["replay-0"].pid, signal.SIGKILL)
    assert runtime.learner.finish_step([gradient.handle]).metrics["step/groups"] == 1
    embeddings = runtime.learner.embed("val")
    np.testing.assert_array_equal(embeddings.values_IE, np.eye(8))
    assert embeddings.values_IE.flags.owndata
    assert embeddings.values_IE.flags.writeable


def test_gradients_stay_in_the_learner_without_replay_workers(make: Make) -> None:
    runtime = make()
    pair, handle = batch(0).pairs[0], runtime.learner.encode(batch(0)).handles[0]
    runtime.rollouts.submit([RolloutTask(pair, handle, SAMPLING)])
    runtime.replays.submit([ReplayTask(drain(runtime.rollouts)[0], handle, 10, True)])
    assert runtime.replays.num_pending == 1
    (gradient,) = drain(runtime.replays)
    assert gradient.handle == LocalHandle(pair.pair_id)
    with pytest.raises(TrainingError, match="pair s9.p9: its token gradients are not here"):
        runtime.learner.finish_step([gradient.handle, LocalHandle("s9.p9")])


def test_user_error_in_the_learner_comes_as_itself(make: Make, tmp_path: Path) -> None:
    script = FaultPlan(str(tmp_path))
    script.plan("encode-0", "user_error")
    runtime = make(script)
    with pytest.raises(TokenError) as caught:
        runtime.learner.encode(batch(0))
    assert type(caught.value) is TokenError
    assert str(caught.value) == "pair encode-0: width 7; expected width 6"
    assert len(runtime.learner.encode(batch(0)).handles) == 6, "the learner lives on"


def _no_images(config: RunConfig) -> FakeLearner:
    raise DataError("no images", where="/data/birds", fix="check data.root")


def test_learner_that_cannot_be_built_says_why(ray_cluster: dict[str, str]) -> None:
    ray.cloudpickle.register_pickle_by_value(__import__("sys").modules[__name__])  # workers cannot import a test
    factories = fake_factories()
    broken = type(factories)(learner=_no_images, rollout=factories.rollout, replay=factories.replay)
    with pytest.raises(DataError, match=r"^/data/birds: no images; check data.root$"):
        RayRuntime(config(), broken)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("kill", "learner: its process died .*; the same command resumes"), ("stop", "learner: no heartbeat for 3 s")],
)
def test_learner_that_dies_or_hangs_ends_the_run_and_says_how_to_go_on(
    kind: Any, message: str, make: Make, tmp_path: Path
) -> None:
    script = FaultPlan(str(tmp_path))
    script.plan("encode-0", kind)
    runtime = make(script, heartbeat_s=3.0)
    with pytest.raises(TrainingError, match=message):
        runtime.learner.encode(batch(0))


def test_no_worker_is_started_without_an_mllm_to_ask(ray_cluster: dict[str, str]) -> None:
    alone = config().model_copy(
        update={"objective": config().objective.model_copy(update={"lambda_lm": 0.0, "lambda_kl": 0.0})}
    )
    with RayRuntime(alone, fake_factories()) as runtime:
        runtime.learner.encode(batch(0))
        assert runtime.learner.finish_step([]).step == 1
        assert runtime.rollouts.workers() == {}
        assert runtime.backbone_digest() == ""


@pytest.mark.parametrize("replay_workers", [0, 1])
def test_run_directory_shows_the_workers_and_takes_orders(replay_workers: int, make: Make, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    runtime = make(replay_workers=replay_workers)
    runtime.watch(tmp_path)
    view = wait_for(tmp_path, {"rollout": 1}, deadline_s=150)
    assert set(view.pools) == ({"rollout", "replay"} if replay_workers else {"rollout"})
    assert [member.pid for member in view.pools["rollout"].members] == [runtime.rollouts.workers()["rollout-0"].pid]
    with pytest.raises(ConfigError, match="rollout=2: out of range; expected 1 to 1"):
        request_scale(tmp_path, {"rollout": 2})
    runtime.close()
    with pytest.raises(ConfigError, match="no workers to scale here"):
        read_workers(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tokens_are_read_from_shared_memory_without_a_copy(dtype: torch.dtype, ray_cluster: dict[str, str]) -> None:
    values_NW = torch.randn(98, 4096, generator=torch.Generator().manual_seed(0)).to(dtype)  # above Ray's inline size
    tokens = EncoderTokens("p0", values_NW, (49, 49), ((1, 14, 14), (1, 14, 14)), 3, 7)
    handle = put_tokens(tokens)
    (first,), (second,) = fetch_tokens([handle], deadline_s=60), fetch_tokens([handle], deadline_s=60)
    assert first.values_NW.dtype == dtype
    assert torch.equal(first.values_NW, values_NW)
    assert first.values_NW.data_ptr() == second.values_NW.data_ptr() != values_NW.data_ptr()
    assert (first.pair_id, first.lengths, first.encoder_version) == ("p0", (49, 49), 7)
