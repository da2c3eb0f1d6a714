"""The serial runtime: all parts run in this process, one after another, without Ray, so that breakpoints work.

It implements the same protocols as the Ray runtime and gives the same results; handles are the records themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saga_dist.config import RunConfig
from saga_dist.protocols import GradientHandle, Learner, ReplayWorker, RolloutWorker
from saga_dist.runtime.build import build_learner, build_replay_worker, build_rollout_worker
from saga_dist.types import GradientTask, RolloutTask, ScoredGroup
from saga_dist.utils.waiting import lasting
from saga_dist.workers.serial_pool import SerialPool


class SerialRuntime:
    """Learner, rollout worker and replay worker of this process; implements ``protocols.Runtime``.

    The MLLM is loaded only when the configuration trains with it or judges pairs with it.

    Args:
        config: the whole configuration.
    """

    learner: Learner

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._rollout_worker: RolloutWorker | None = None
        self._replay_worker: ReplayWorker | None = None
        with lasting("loading the models of this run into this process"):
            self.learner = build_learner(config)
            if config.needs_mllm:
                self._replay_worker = build_replay_worker(config)
            if config.needs_engine:
                self._rollout_worker = build_rollout_worker(config)
        self.rollouts: SerialPool[RolloutTask, ScoredGroup] = SerialPool(
            self._roll_out,
            lease=config.rollout.groups_per_lease,
            max_attempts=config.rollout.max_attempts,
            max_quarantined=config.rollout.max_quarantined,
        )
        self.replays: SerialPool[GradientTask, GradientHandle] = SerialPool(
            self._replay, lease=1, max_attempts=1, max_quarantined=config.rollout.max_quarantined
        )

    def restart_learner(self) -> None:
        """Builds a new learner. Only the Ray runtime loses learners, so this is not needed in a run."""
        self.rollouts.forget()
        self.replays.forget()
        self.learner = build_learner(self._config)

    def reset_learner(self, config: RunConfig) -> None:
        """Replaces the learner by a new one for ``config``; the workers, which have only frozen weights, stay."""
        self._config = config
        self.learner = build_learner(config)

    def backbone_digest(self) -> str:
        """Returns the sha256 of the frozen backbone; empty when none is loaded."""
        return self._replay_worker.backbone_digest() if self._replay_worker else ""

    def take_checkpoint_request(self) -> bool:
        """Returns False, because no node but this one is involved."""
        return False

    def watch(self, run_dir: Path) -> None:
        """Does nothing, because there are no workers to scale."""

    def close(self) -> None:
        """Drops all tasks and closes the engine."""
        self.rollouts.close()
        self.replays.close()
        if self._rollout_worker:
            self._rollout_worker.close()

    def _roll_out(self, tasks: Sequence[RolloutTask]) -> list[ScoredGroup]:
        assert self._rollout_worker is not None, "the configuration needs no MLLM"
        return self._rollout_worker.rollout(tasks, [task.tokens for task in tasks])

    def _replay(self, tasks: Sequence[GradientTask]) -> list[GradientHandle]:
        assert self._replay_worker is not None, "the configuration needs no MLLM"
        return [GradientHandle.of(self._replay_worker.replay(task, task.tokens, task.behaviour)) for task in tasks]
