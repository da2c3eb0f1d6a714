"""The Ray runtime: learner and worker pools as actors, which are started at the same time and closed together."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from saga_dist.config import RunConfig
from saga_dist.protocols import GradientHandle, WorkerPool
from saga_dist.runtime.leftovers import Leftovers
from saga_dist.runtime.ray.actors import Factories
from saga_dist.runtime.ray.adapter import PoolConfig, Timeouts
from saga_dist.runtime.ray.adapters import ReplayAdapter, RolloutAdapter
from saga_dist.runtime.ray.draining import DrainWatch
from saga_dist.runtime.ray.endings import Endings
from saga_dist.runtime.ray.learner_group import spawn_learner
from saga_dist.runtime.ray.pool import RayPool
from saga_dist.runtime.ray.remote_learner import LearnerReplayPool, RemoteLearner
from saga_dist.runtime.ray.scale import ScalablePool, ScaleController
from saga_dist.runtime.ray.session import RaySession
from saga_dist.runtime.stopping import StopRequest
from saga_dist.types import GradientTask, RolloutTask, ScoredGroup
from saga_dist.utils.waiting import WaitNotice

SETTLE_S = 15.0
"""Longest time that ``close`` waits for the end of killed processes, seconds."""


class RayRuntime:
    """Learner, rollout pool and replay pool on Ray; implements ``protocols.Runtime``.

    Workers start in the background. The constructor waits for the learner only, so that the first evaluation runs while
    the engines start. No worker is started when the configuration needs no MLLM, and no rollout worker when nothing is
    sampled.

    Args:
        config: the whole configuration.
        factories: functions that build the plain objects; None: those of ``build``.
        stop: request to stop, which ends the start and every wait before the first step.
        home: run directory, in which created processes and files are recorded; None to record nothing.

    Raises:
        ConfigError: Ray cannot be started or joined.
        UserError: the learner found a mistake in configuration, model or data.
    """

    learner: RemoteLearner

    def __init__(
        self,
        config: RunConfig,
        factories: Factories | None = None,
        *,
        stop: StopRequest | None = None,
        home: Path | None = None,
    ) -> None:
        self._config, factories, self._stop = config, factories or Factories(), stop or StopRequest()
        leftovers = Leftovers(home)
        leftovers.sweep()  # what the last process of this run left, if it was killed
        endings = Endings(leftovers, self._stop)
        with ExitStack() as closing:
            closing.callback(leftovers.close, deadline_s=SETTLE_S)
            session = RaySession(config, stop=self._stop, leftovers=leftovers)
            closing.callback(session.close)
            self.learner = RemoteLearner(
                lambda: spawn_learner(self._config, factories),
                self._timeouts(config.runtime.learner_deadline_s),
                session.missing,
                kill=endings.kill,
                stop=self._stop,
            )
            closing.callback(self.learner.close)
            self.rollouts = self._rollout_pool(RolloutAdapter(config, factories, session.missing, endings))
            closing.callback(self.rollouts.close)
            self.replays: WorkerPool[GradientTask, GradientHandle] = self._replay_pool(
                ReplayAdapter(config, factories, session.missing, endings)
            )
            closing.callback(self.replays.close)
            closing.enter_context(WaitNotice(self._starting, lambda: session.missing() or "they load and start"))
            if config.needs_engine:
                self.rollouts.start()
            if config.needs_mllm and isinstance(self.replays, RayPool):
                self.replays.start()
            self.learner.wait_until_up()
            self._draining = DrainWatch(
                [pool for pool in (self.rollouts, self.replays) if isinstance(pool, RayPool)],
                heartbeat_s=config.runtime.heartbeat_s,
            )
            self._draining.start()
            closing.callback(self._draining.close)
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

    def take_checkpoint_request(self) -> bool:
        """Returns True once after notice that the node of the learner, or of this process, is taken away."""
        return self._draining.take_checkpoint_request()

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

    def _starting(self) -> str:
        """Returns the roles of which no process is up although one is starting, as text; empty for none."""
        names = [] if self.learner.info is not None else ["the learner"]
        for name, pool in (("rollout workers", self.rollouts), ("replay workers", self.replays)):
            states = {worker.state for worker in pool.status()} if isinstance(pool, RayPool) else set()
            if "starting" in states and not states & {"idle", "busy"}:
                names.append(name)
        return ", ".join(names)

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
        return RayPool(adapter, config, check_stop=self._stop.check)

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
        return RayPool(adapter, config, check_stop=self._stop.check)
