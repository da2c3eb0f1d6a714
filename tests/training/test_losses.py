"""Learners that are lost and groups that nobody can answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saga_dist.errors import LearnerLost, TrainingError
from saga_dist.runtime.build import build_learner
from saga_dist.types import Quarantined

pytestmark = pytest.mark.integration


class LossyLearner:
    """A learner that is lost in some of its calls, before or after they took effect."""

    def __init__(self, inner: Any, losses: dict[tuple[str, int], int]) -> None:
        self._inner, self._losses = inner, losses

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        key = (name, self._inner.step)
        if self._losses.get(key, 0):
            self._losses[key] -= 1
            raise LearnerLost("its process died", where="learner")
        return value


@pytest.mark.parametrize("call", ["encode", "finish_step", "embed", "save"])
def test_a_lost_learner_is_replaced_and_the_result_is_the_same(call: str, scene: Any, tmp_path: Path) -> None:
    config = scene.config(steps=3, evaluation={"every_steps": 1})
    straight = scene.coordinator(config, tmp_path / "straight")
    selection = straight.run()
    coordinator = scene.coordinator(config, tmp_path / "lossy")
    runtime, losses = coordinator._runtime, {(call, 0): 1, (call, 2): 1, (call, 1): 1}

    def revive() -> None:
        runtime.learner = LossyLearner(build_learner(config), losses)

    runtime.restart_learner = revive
    revive()
    assert coordinator.run() == selection
    assert scene.weights_digest(tmp_path / "lossy", 3) == scene.weights_digest(tmp_path / "straight", 3)
    assert sum(losses.values()) <= 1, "the losses struck"
    assert scene.audit(config, tmp_path / "lossy") == scene.audit(config, tmp_path / "straight")


def test_a_learner_that_is_lost_again_and_again_ends_the_run(scene: Any, tmp_path: Path) -> None:
    config = scene.config(runtime={"kind": "serial", "max_learner_restarts": 2})
    coordinator = scene.coordinator(config, tmp_path)
    runtime, losses = coordinator._runtime, {("finish_step", 1): 9}

    def revive() -> None:
        runtime.learner = LossyLearner(build_learner(config), losses)

    runtime.restart_learner = revive
    revive()
    with pytest.raises(TrainingError, match=r"lost 3 times without a new checkpoint in between; learner: its process"):
        coordinator.run()
    assert losses["finish_step", 1] == 6


class PoisonedPool:
    """A pool that sets some pairs aside."""

    def __init__(self, inner: Any, poisoned: set[str]) -> None:
        self._inner, self._poisoned = inner, poisoned
        self._failed: list[Quarantined] = []

    def submit(self, tasks: Any) -> None:
        names = [getattr(task, "group", task).pair.pair_id for task in tasks]
        self._failed += [Quarantined(name, "engine died", 2) for name in names if name in self._poisoned]
        self._inner.submit([task for task, name in zip(tasks, names, strict=True) if name not in self._poisoned])

    def collect(self) -> list[Any]:
        failed, self._failed = self._failed, []
        return failed or self._inner.collect()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_poisoned_group_is_set_aside_and_the_step_goes_on(scene: Any, tmp_path: Path) -> None:
    config = scene.config(steps=1)
    coordinator = scene.coordinator(config, tmp_path)
    coordinator._runtime.rollouts = PoisonedPool(coordinator._runtime.rollouts, {"s000001.m0.p01"})
    metrics = coordinator.train_step().metrics
    assert metrics["rollout/quarantined"] == 1
    assert metrics["rollout/selected"] == 3, "a further micro-batch filled the buffer"
    assert scene.audit(config, tmp_path)["quarantined"] == 1
    line = json.loads((tmp_path / "ledger.jsonl").read_text())
    assert line["quarantined"] == {"s000001.m0.p01": "engine died"}


def test_what_cannot_be_replayed_leaves_the_denominator_too(scene: Any, tmp_path: Path) -> None:
    """The step with a poisoned group equals the step of a buffer that never had it."""
    config = scene.config(steps=1)
    poisoned = scene.coordinator(config, tmp_path / "poisoned")
    poisoned._runtime.replays = PoisonedPool(poisoned._runtime.replays, {"s000001.m0.p03"})
    metrics = poisoned.train_step().metrics
    assert metrics["rollout/quarantined"] == 1
    assert metrics["rollout/selected"] == 2
    never = scene.coordinator(
        config,
        tmp_path / "never",
        lambda pair_id, completion, tokens: (
            scene.answer("no") if pair_id.endswith("p03") else scene.half_of_the_pairs_vary(pair_id, completion, tokens)
        ),
    )
    other = never._config.model_copy(update={"rollout": config.rollout.model_copy(update={"max_micro_batches": 1})})
    never._config = other
    assert never.train_step().metrics["loss/grpo"] == pytest.approx(metrics["loss/grpo"], rel=1e-6)
