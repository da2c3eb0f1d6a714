"""The part of the scaling bench that needs Ray: the real coordinator and pool with workers that only sleep.

A worker sleeps as long as a real engine took for a group, according to a recorded trace, and runs no model. So 64
workers fit on two cores, and the bench measures the overhead of the system: leases, order, waits, bookkeeping.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray

from saga_dist.config import RunConfig
from saga_dist.data.sampling import training_sampler
from saga_dist.metrics.log import MetricsLog
from saga_dist.protocols import GradientHandle
from saga_dist.runtime.ray.adapter import ActorAdapter, PoolConfig, Timeouts
from saga_dist.runtime.ray.errors import WorkerInfo
from saga_dist.runtime.ray.fake_workers import FakeLearner, FakeReplayWorker, fake_group
from saga_dist.runtime.ray.fault_plan import FaultPlan
from saga_dist.runtime.ray.pool import RayPool
from saga_dist.training.coordinator import Coordinator
from saga_dist.types import GradientTask, RolloutTask, ScoredGroup, StepResult, TokenGradients
from saga_dist.utils.rng import counter_generator, counter_seed
from saga_dist.workers.serial_pool import SerialPool

_TIMEOUTS = Timeouts(start_s=600.0, lease_s=120.0, heartbeat_s=60.0)


class SleeperAdapter(ActorAdapter[RolloutTask, ScoredGroup]):
    """Adapter of a pool to workers that sleep for the durations of a trace.

    Args:
        latencies: recorded duration of each group, seconds.
        scale: factor on the durations; 0: workers answer immediately.
        contribution: probability that a group contributes, in [0, 1]; whether it does is a function of its pair.
    """

    name = "rollout"

    def __init__(self, latencies: Sequence[float], scale: float, *, contribution: float = 1.0) -> None:
        self._latencies, self._scale, self._contribution = latencies, scale, contribution
        self._sent: dict[str, RolloutTask] = {}

    def seconds(self, pair_id: str) -> float:
        """Returns the duration of the group of a pair, which does not depend on the worker."""
        return self._scale * self._latencies[counter_seed("latency", pair_id) % len(self._latencies)]

    def spawn(self) -> Any:
        """Returns the handle of a new worker; its class is pickled by value, which keeps its process small."""

        class Sleeper:
            def start(self) -> WorkerInfo:
                return WorkerInfo(os.getpid(), "", "", "")

            def health(self) -> float:
                return 0.0

            def run(self, seconds: Sequence[float], pair_ids: Sequence[str]) -> Sequence[str]:
                time.sleep(sum(seconds))
                return pair_ids

        return ray.remote(num_cpus=0, max_concurrency=2)(Sleeper).remote()

    def send(
        self, actor: Any, tasks: Sequence[RolloutTask], cancelled: Sequence[str]
    ) -> tuple[ray.ObjectRef, Sequence[ray.ObjectRef]]:
        """Sends tasks; the answer is the list of pair ids."""
        self._sent.update((task.pair_id, task) for task in tasks)
        names = [task.pair_id for task in tasks]
        return actor.run.remote([self.seconds(name) for name in names], names), ()

    def receive(self, answer: Any, payloads: Sequence[ray.ObjectRef]) -> tuple[list[ScoredGroup], Sequence[str]]:
        """Returns the groups of a fake rollout worker, which has no more tasks."""
        tasks = [self._sent.pop(name) for name in answer]
        groups = [fake_group(task, task.tokens, contributes=self._contributes(task.pair_id)) for task in tasks]
        return groups, ()

    def _contributes(self, pair_id: str) -> bool:
        return counter_generator("contribution", pair_id).random() < self._contribution

    def task_key(self, task: RolloutTask) -> str:
        """Returns the pair id."""
        return task.pair_id

    def result_key(self, result: ScoredGroup) -> str:
        """Returns the pair id."""
        return result.pair_id


class SimulatedActor:
    """Actor handle without a process; a timer of an event loop in another thread completes each call.

    Args:
        clock: the event loop.
        pid: number of the actor, in place of a process id.
    """

    def __init__(self, clock: asyncio.AbstractEventLoop, pid: int) -> None:
        self._clock = clock
        info = WorkerInfo(pid, "", "", "")
        self.start = SimpleNamespace(remote=lambda: self._answer(0.0, info))
        self.health = SimpleNamespace(remote=lambda: self._answer(0.0, 0.0))
        self.run = SimpleNamespace(remote=lambda seconds, pair_ids: self._answer(sum(seconds), pair_ids))

    def _answer(self, seconds: float, value: Any) -> Any:
        """Returns an object with the ``future`` of a reference, which gets its value after ``seconds``."""
        answer = Future[Any]()
        self._clock.call_soon_threadsafe(self._clock.call_later, seconds, answer.set_result, value)
        return SimpleNamespace(future=lambda: answer)


class SimulatedAdapter(SleeperAdapter):
    """Adapter to simulated workers with the same durations, of which a machine can run thousands.

    Args:
        latencies: see ``SleeperAdapter``.
        scale: see ``SleeperAdapter``.
    """

    def __init__(self, latencies: Sequence[float], scale: float) -> None:
        super().__init__(latencies, scale)
        self._pids = itertools.count(1)
        self._clock = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._clock.run_forever, name="simulated workers", daemon=True)
        self._thread.start()

    def spawn(self) -> SimulatedActor:
        """Returns the handle of a new simulated worker."""
        return SimulatedActor(self._clock, next(self._pids))

    def kill(self, actor: SimulatedActor) -> None:
        """Does nothing, because there is no process."""

    def close(self) -> None:
        """Ends the thread of the event loop."""
        self._clock.call_soon_threadsafe(self._clock.stop)
        self._thread.join()
        self._clock.close()


class BenchLearner(FakeLearner):
    """Fake learner with four images of each training class, whose update takes a given time.

    Args:
        config: configuration of the run.
        update_s: duration of one optimizer step, seconds.
    """

    def __init__(self, config: RunConfig, update_s: float) -> None:
        super().__init__(config, FaultPlan())
        self._update_s, self._num_classes = update_s, config.data.birds.train_classes

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of four images of each training class; other splits are empty."""
        num_images = 4 * self._num_classes if split == "train" else 0
        return np.arange(num_images, dtype=np.int64) // 4

    def finish_step(self, handles: Sequence[TokenGradients]) -> StepResult:
        """Takes one optimizer step, after sleeping for its duration."""
        time.sleep(self._update_s)
        return super().finish_step(handles)


class BenchRuntime:
    """Runtime with the real rollout pool over sleeping workers; learner and replay are fakes in this process.

    Args:
        config: configuration of the run.
        adapter: adapter of the rollout pool.
        update_s: duration of one optimizer step, seconds.
    """

    def __init__(self, config: RunConfig, adapter: SleeperAdapter, update_s: float) -> None:
        replay = FakeReplayWorker(config, FaultPlan())
        self.learner = BenchLearner(config, update_s)
        self.rollouts = RayPool(
            adapter, PoolConfig(config.rollout.workers, config.rollout.groups_per_lease, 3, _TIMEOUTS)
        )
        self.replays: SerialPool[GradientTask, GradientHandle] = SerialPool(
            lambda tasks: [GradientHandle.of(replay.replay(task, task.tokens)) for task in tasks],
            lease=1,
            max_attempts=1,
            max_quarantined=0,
        )

    def restart_learner(self) -> None:
        """Does nothing, because the learner is never lost."""

    def reset_learner(self, config: RunConfig) -> None:
        """Does nothing, because each runtime serves one run."""

    def backbone_digest(self) -> str:
        """Returns an empty string, because there is no backbone."""
        return ""

    def take_checkpoint_request(self) -> bool:
        """Returns False, because no checkpoint is needed."""
        return False

    def watch(self, run_dir: Path) -> None:
        """Does nothing, because the bench does not change the number of workers."""

    def close(self) -> None:
        """Ends the workers."""
        self.rollouts.close()


def wait_for_workers(pool: RayPool[Any, Any], number: int) -> None:
    """Waits until this many workers are up, because their start is not part of the measurement."""
    deadline = time.monotonic() + _TIMEOUTS.start_s
    while len(pool.workers()) < number and time.monotonic() < deadline:
        time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class TimedRun:
    """Metrics and rates of a run of the bench."""

    steps: list[dict[str, float]]
    """Metrics of every step."""
    seconds: float
    """Wall time of all steps but the first one."""

    @property
    def groups_per_s(self) -> float:
        """Groups per second, without the first step."""
        return sum(row["rollout/groups"] for row in self.steps[1:]) / self.seconds

    @property
    def steps_per_min(self) -> float:
        """Optimizer steps per minute, without the first one."""
        return 60 * (len(self.steps) - 1) / self.seconds

    def mean(self, metric: str, *, skip: int = 1) -> float:
        """Returns the mean of a metric over the steps.

        Args:
            metric: name of the metric.
            skip: steps at the beginning that are left out; the last step never is.
        """
        values = [row[metric] for row in self.steps[skip:] or self.steps[-1:]]
        return sum(values) / len(values)


def train(config: RunConfig, adapter: SleeperAdapter, *, update_s: float) -> TimedRun:
    """Trains; returns the metrics of the steps and the time that they took.

    Args:
        config: configuration of the run.
        adapter: adapter of the rollout pool.
        update_s: duration of one optimizer step, seconds.
    """
    runtime = BenchRuntime(config, adapter, update_s)
    try:
        runtime.rollouts.start()
        wait_for_workers(runtime.rollouts, config.rollout.workers)
        labels = runtime.learner.labels("train")
        sampler = training_sampler(config, labels)
        ends: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            Coordinator(config, runtime, sampler, Path(folder), on_step=lambda _: ends.append(time.monotonic())).run()
            rows = [row for row in MetricsLog(Path(folder) / "metrics.jsonl").rows() if "step/wall_s" in row]
    finally:
        runtime.close()
    return TimedRun(rows, ends[-1] - ends[0])


def split_evenly(config: RunConfig, adapter: SleeperAdapter) -> float:
    """Returns groups per second of the baseline: the pairs of a step are divided evenly among the workers in advance.

    The next step starts when all workers have finished. There is no learner.

    Args:
        config: configuration of the run.
        adapter: creates the workers.
    """
    workers = [adapter.spawn() for _ in range(config.rollout.workers)]
    try:
        ray.get([worker.start.remote() for worker in workers], timeout=_TIMEOUTS.start_s)
        sampler = training_sampler(config, BenchLearner(config, 0.0).labels("train"))
        started, groups = time.monotonic(), 0
        for step in range(1, config.run.steps):
            names = [pair.pair_id for pair in sampler.micro_batch(step, 0, config.rollout.pairs_per_batch).pairs]
            shares = [names[index :: len(workers)] for index in range(len(workers))]
            answers = [
                worker.run.remote([adapter.seconds(name) for name in share], share)
                for worker, share in zip(workers, shares, strict=True)
            ]
            groups += sum(len(answer) for answer in ray.get(answers, timeout=_TIMEOUTS.lease_s))
        return groups / (time.monotonic() - started)
    finally:
        for worker in workers:
            ray.kill(worker, no_restart=True)
