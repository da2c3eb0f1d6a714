"""Workers of the scaling bench that generate several groups at the same time, as an engine's batch does.

Each group takes the duration of a recorded trace, whatever else is in the batch. A worker that is fed returns each
group when its time is over; another one returns the groups of a lease together, when the longest is over.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import ray

from saga_dist.runtime.ray.errors import WorkerInfo
from saga_dist.runtime.ray.scaling_bench import SleeperAdapter
from saga_dist.types import RolloutTask, ScoredGroup


class BatchSleeperAdapter(SleeperAdapter):
    """Adapter of a pool to workers that sleep for several groups at the same time.

    Args:
        latencies: recorded duration of each group, seconds.
        scale: factor on the durations.
        contribution: probability that a group contributes, in [0, 1].
        fed: True: workers take groups while others are in flight, and return them one by one.
    """

    def __init__(self, latencies: Sequence[float], scale: float, *, contribution: float, fed: bool) -> None:
        super().__init__(latencies, scale, contribution=contribution)
        self._fed = fed

    def spawn(self) -> Any:
        """Returns the handle of a new worker; its class is pickled by value, which keeps its process small."""

        class BatchSleeper:
            def __init__(self, fed: bool) -> None:
                self._fed, self._ends, self._interrupted = fed, dict[str, float](), threading.Event()

            def start(self) -> WorkerInfo:
                return WorkerInfo(os.getpid(), "", "", "", is_fed=self._fed)

            def health(self) -> float:
                return 0.0

            def interrupt(self) -> None:
                self._interrupted.set()

            def run(
                self, seconds: Sequence[float], pair_ids: Sequence[str], cancelled: Sequence[str]
            ) -> tuple[list[str], list[str]]:
                now = time.monotonic()
                for pair_id in cancelled:
                    self._ends.pop(pair_id, None)
                self._ends.update((name, now + duration) for name, duration in zip(pair_ids, seconds, strict=True))
                if self._ends:
                    wanted = min(self._ends.values()) if self._fed else max(self._ends.values())
                    self._interrupted.wait(max(0.0, wanted - now))
                self._interrupted.clear()
                finished = [name for name, end in self._ends.items() if end <= time.monotonic()]
                for name in finished:
                    del self._ends[name]
                return finished, list(self._ends)

        return ray.remote(num_cpus=0, max_concurrency=3)(BatchSleeper).remote(self._fed)

    def send(
        self, actor: Any, tasks: Sequence[RolloutTask], cancelled: Sequence[str]
    ) -> tuple[ray.ObjectRef, Sequence[ray.ObjectRef]]:
        """Sends tasks; the answer is the ids of the finished pairs and of those in flight."""
        self._sent.update((task.pair_id, task) for task in tasks)
        names = [task.pair_id for task in tasks]
        return actor.run.remote([self.seconds(name) for name in names], names, list(cancelled)), ()

    def receive(self, answer: Any, payloads: Sequence[ray.ObjectRef]) -> tuple[list[ScoredGroup], Sequence[str]]:
        """Returns the groups of a fake rollout worker, and the ids of the pairs in flight."""
        finished, in_flight = answer
        groups, _ = super().receive(finished, payloads)
        return groups, in_flight

    def interrupt(self, actor: Any) -> ray.ObjectRef:
        """Makes a worker answer with the groups that are finished."""
        return actor.interrupt.remote()
