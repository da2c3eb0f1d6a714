"""Worker pools without Ray: the serial pool, and the way everybody runs a set of tasks to its end."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from saga_dist.errors import TrainingError, WorkerError
from saga_dist.protocols import WorkerPool
from saga_dist.types import Quarantined

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
log = logging.getLogger(__name__)


def run_all(pool: WorkerPool[Any, Any], tasks: Sequence[Any]) -> list[Any]:
    """Returns the results of all tasks, in order of arrival.

    Raises:
        WorkerError: a task was quarantined.
    """
    results = run_or_set_aside(pool, tasks)
    for result in results:
        if isinstance(result, Quarantined):
            raise WorkerError(
                f"failed on {result.attempts} workers, the last time: {result.reason}", where=f"pair {result.pair_id}"
            )
    return results


def run_or_set_aside(pool: WorkerPool[Any, Any], tasks: Sequence[Any]) -> list[Any]:
    """Returns the results of all tasks, ``Quarantined`` ones among them, in order of arrival. Ends because every
    ``collect`` does."""
    pool.submit(tasks)
    results: list[Any] = []
    while len(results) < len(tasks):
        arrived = pool.collect()
        if not arrived:
            raise TrainingError(f"{len(tasks) - len(results)} tasks vanished from the pool", where="worker pool")
        results.extend(arrived)
    return results


class SerialPool(Generic[TaskT, ResultT]):
    """One worker in this process behind the pool protocol: ``collect`` runs the next lease and returns its results.

    Args:
        run: does the work of one lease; returns one result per task, in order.
        lease: tasks handed to ``run`` at once.
        max_attempts: tries per lease before its error is raised.
    """

    def __init__(self, run: Callable[[Sequence[TaskT]], list[ResultT]], *, lease: int, max_attempts: int) -> None:
        self._run, self._lease, self._max_attempts = run, lease, max_attempts
        self._queue: deque[TaskT] = deque()

    def submit(self, tasks: Sequence[TaskT]) -> None:
        """Queues tasks; returns at once."""
        self._queue.extend(tasks)

    def collect(self) -> list[ResultT]:
        """Runs the next lease and returns its results, or an empty list when nothing is pending."""
        tasks = [self._queue.popleft() for _ in range(min(self._lease, len(self._queue)))]
        for attempt in range(1, self._max_attempts + 1) if tasks else ():
            try:
                return self._run(tasks)
            except WorkerError as error:
                if attempt == self._max_attempts:
                    raise
                log.warning("attempt %d of %d failed, trying again: %s", attempt, self._max_attempts, error)
        return []

    @property
    def num_pending(self) -> int:
        """Tasks submitted and not yet collected."""
        return len(self._queue)

    def metrics(self) -> dict[str, float]:
        """Nothing to report: one process has no leases, heartbeats or replacements."""
        return {}

    def forget(self) -> None:
        """Drops queued tasks."""
        self._queue.clear()

    def close(self) -> None:
        """Forgets queued tasks."""
        self.forget()
