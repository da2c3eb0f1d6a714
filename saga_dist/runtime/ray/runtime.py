"""The Ray runtime: learner and worker pools as actors, which are started at the same time and closed together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

from saga_dist.config import RunConfig
from saga_dist.protocols import GradientHandle
from saga_dist.runtime.ray.actors import Factories, ReplayActor, RolloutActor, spawn
from saga_dist.runtime.ray.adapter import ActorAdapter, PoolConfig, Timeouts
from saga_dist.runtime.ray.learner_group import spawn_learner
from saga_dist.runtime.ray.object_refs import ObjectHandle
from saga_dist.runtime.ray.pool import RayPool
from saga_dist.runtime.ray.remote_learner import LearnerReplayPool, RemoteLearner
from saga_dist.runtime.ray.scale import ScalablePool, ScaleController
from saga_dist.runtime.ray.session import RaySession
from saga_dist.types import GradientTask, RolloutTask, ScoredGroup
from saga_dist.wire import groups_from_batch

log = logging.getLogger(__name__)


class RolloutAdapter(ActorAdapter[RolloutTask, ScoredGroup]):
    """Adapter of the rollout pool to ``RolloutActor``.

    Args:
        config: the whole configuration.
        factories: functions that build the plain objects.
        missing: returns the resources that the cluster lacks.
    """

    name = "rollout"

    def __init__(self, config: RunConfig, factories: Factories, missing: Callable[[], str]) -> None:
        self._config, self._factories, self._missing = config, factories, missing

    def spawn(self) -> Any:
        """Returns the handle of a new rollout actor."""
        section = self._config.rollout
        return spawn(RolloutActor, self._config, self._factories, num_cpus=section.num_cpus, num_gpus=section.num_gpus)

    def send(self, actor: Any, tasks: Sequence[RolloutTask]) -> tuple[ray.ObjectRef, Sequence[ray.ObjectRef]]:
        """Starts a lease; the answer is one Arrow batch of scored groups."""
        return actor.run.remote(list(tasks)), ()

    def receive(self, answer: Any, payloads: Sequence[ray.ObjectRef]) -> list[ScoredGroup]:
        """Returns the scored groups of the batch."""
        return groups_from_batch(answer)

    def task_key(self, task: RolloutTask) -> str:
        """Returns the pair id."""
        return task.pair.pair_id

    def result_key(self, result: ScoredGroup) -> str:
        """Returns the pair id."""
        return result.pair.pair_id

    def missing(self) -> str:
        """Returns the resources that the cluster lacks for the configured roles, as text; empty when it has all."""
        return self._missing()


class ReplayAdapter(ActorAdapter[GradientTask, GradientHandle]):
    """Adapter of the replay pool to ``ReplayActor``; token gradients stay in the object store.

    Args:
        config: the whole configuration.
        factories: functions that build the plain objects.
        missing: returns the resources that the cluster lacks.
    """

    name = "replay"

    def __init__(self, config: RunConfig, factories: Factories, missing: Callable[[], str]) -> None:
        self._config, self._factories, self._missing = config, factories, missing

    def spawn(self) -> Any:
        """Returns the handle of a new replay actor."""
        section = self._config.replay
        return spawn(ReplayActor, self._config, self._factories, num_cpus=section.num_cpus, num_gpus=section.num_gpus)

    def send(self, actor: Any, tasks: Sequence[GradientTask]) -> tuple[ray.ObjectRef, Sequence[ray.ObjectRef]]:
        """Starts a lease; the answer is the list of views, and one payload per task."""
        answer, *payloads = actor.run.options(num_returns=1 + len(tasks)).remote(list(tasks))
        return answer, payloads

    def receive(self, answer: Any, payloads: Sequence[ray.ObjectRef]) -> list[GradientHandle]:
        """Returns one gradient handle per task, with the reference of its payload."""
        return [
            replace(view, handle=ObjectHandle(view.pair_id, ref)) for view, ref in zip(answer, payloads, strict=True)
        ]

    def task_key(self, task: GradientTask) -> str:
        """Returns the pair id."""
        return task.pair_id

    def result_key(self, result: GradientHandle) -> str:
        """Returns the pair id."""
        return result.pair_id

    def missing(self) -> str:
        """Returns the resources that the cluster lacks for the configured roles, as text; empty when it has all."""
        return self._missing()


class RayRuntime:
    """Learner, rollout pool and replay pool on Ray; implements ``protocols.Runtime``.

    Workers start in the background. The constructor waits for the learner only, so that the first evaluation runs while
    the engines start. No worker is started when the configuration needs no MLLM, and no rollout worker when nothing is
    sampled.

    Args:
        config: the whole configuration.
        factories: functions that build the plain objects; None: those of ``build``.

    Raises:
        ConfigError: Ray cannot be started or joined.
        UserError: the learner found a mistake in configuration, model or data.
    """

    learner: RemoteLearner

    def __init__(self, config: RunConfig, factories: Factories | None = None) -> None:
        self._config, factories = config, factories or Factories()
        with ExitStack() as closing:
            session = RaySession(config)
            closing.callback(session.close)
            self.learner = RemoteLearner(
                lambda: spawn_learner(self._config, factories),
                self._timeouts(config.runtime.learner_deadline_s),
                session.missing,
            )
            closing.callback(self.learner.close)
            self.rollouts = self._rollout_pool(RolloutAdapter(config, factories, session.missing))
            closing.callback(self.rollouts.close)
            self.replays = self._replay_pool(ReplayAdapter(config, factories, session.missing))
            closing.callback(self.replays.close)
            if config.needs_engine:
                self.rollouts.start()
            if config.needs_mllm and isinstance(self.replays, RayPool):
                self.replays.start()
            self.learner.wait_until_up()
            self._closing = closing.pop_all()

    def restart_learner(self) -> None:
        """Starts a new learner in place of a lost one; the pools drop all tasks."""
        self.rollouts.forget()
        self.replays.forget()
        self.learner.restart()

    def reset_learner(self, config: RunConfig) -> None:
        """Replaces the learner by a new one for ``config``; the workers, which have only frozen weights, stay."""
        self._config = config
        self.learner.reset(config)

    def backbone_digest(self) -> str:
        """Returns the sha256 of the frozen backbone that replay differentiates through; empty without an MLLM."""
        if not self._config.needs_mllm:
            return ""
        if isinstance(self.replays, RayPool):
            return self.replays.call("backbone_digest")
        return self.learner.call("backbone_digest")

    def watch(self, run_dir: Path) -> None:
        """Accepts requests of `saga-dist scale` through files in the run directory, until ``close``."""
        config, scalable = self._config, dict[str, tuple[ScalablePool, tuple[int, int]]]()
        if config.needs_engine:
            scalable["rollout"] = self.rollouts, config.rollout.worker_range
        if config.needs_mllm and isinstance(self.replays, RayPool):
            scalable["replay"] = self.replays, config.replay.worker_range
        watch = ScaleController(run_dir, scalable)
        watch.start()
        self._closing.callback(watch.close)

    def close(self) -> None:
        """Ends all actors, then the private Ray if one was started; a second call does nothing."""
        self._closing.close()

    def __enter__(self) -> RayRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _timeouts(self, lease_s: float) -> Timeouts:
        """Returns the deadlines of a worker whose calls may take ``lease_s`` seconds."""
        return Timeouts(self._config.rollout.start_deadline_s, lease_s, self._config.runtime.heartbeat_s)

    def _rollout_pool(self, adapter: RolloutAdapter) -> RayPool[RolloutTask, ScoredGroup]:
        section = self._config.rollout
        # The deadline of a lease is later than the engine's, because the engine's error says more.
        timeouts = self._timeouts(section.deadline_s + self._config.runtime.heartbeat_s)
        config = PoolConfig(
            workers=section.workers,
            tasks_per_lease=section.groups_per_lease,
            max_attempts=section.max_attempts,
            timeouts=timeouts,
            max_quarantined=section.max_quarantined,
            min_workers=section.worker_range[0],
            idle_release_s=section.idle_release_s,
        )
        return RayPool(adapter, config)

    def _replay_pool(self, adapter: ReplayAdapter) -> RayPool[GradientTask, GradientHandle] | LearnerReplayPool:
        section, rollout = self._config.replay, self._config.rollout
        if not section.workers:
            return LearnerReplayPool(self.learner, deadline_s=section.deadline_s)
        config = PoolConfig(
            workers=section.workers,
            tasks_per_lease=1,  # groups differ in length, and replay does not batch over groups
            max_attempts=rollout.max_attempts,
            timeouts=self._timeouts(section.deadline_s),
            max_quarantined=rollout.max_quarantined,
            min_workers=section.worker_range[0],
        )
        return RayPool(adapter, config)
