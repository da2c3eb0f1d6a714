"""Worker pools without Ray: the serial pool, and the way everybody runs a set of tasks to its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from saga_dist.errors import TrainingError, WorkerError
from saga_dist.protocols import WorkerPool
from saga_dist.types import Quarantined
from saga_dist.workers.work_queue import WorkQueue

ResultT = TypeVar("ResultT")
log = logging.getLogger(__name__)

_HERE = "here"
"""The name of the one worker."""


def run_all(pool: WorkerPool[Any, Any], tasks: Sequence[Any]) -> list[Any]:
    """Returns the results of all tasks, in order of arrival.

    Raises:
        WorkerError: a task was quarantined.
    """
    results = run_tasks(pool, tasks)
    for result in results:
        if isinstance(result, Quarantined):
            raise WorkerError(
                f"failed on {result.attempts} workers, the last time: {result.reason}", where=f"pair {result.pair_id}"
            )
    return results


def run_tasks(pool: WorkerPool[Any, Any], tasks: Sequence[Any]) -> list[Any]:
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


class SerialTask(Protocol):
    """What the serial pool must know of a task."""

    @property
    def pair_id(self) -> str: ...


TaskT = TypeVar("TaskT", bound=SerialTask)


class SerialPool(Generic[TaskT, ResultT]):
    """One worker in this process behind the pool protocol: ``collect`` runs the next lease and returns its results.

    Args:
        run: does the work of one lease; returns one result per task, in order.
        lease: tasks handed to ``run`` at once.
        max_attempts: tries per task before it is set aside; the first may be shared by a lease.
        max_quarantined: tasks that may be set aside before that is an error.
    """

    def __init__(
        self,
        run: Callable[[Sequence[TaskT]], list[ResultT]],
        *,
        lease: int,
        max_attempts: int,
        max_quarantined: int = 8,
    ) -> None:
        self._run, self._lease = run, lease
        self._queue: WorkQueue[TaskT] = WorkQueue(max_attempts=max_attempts, max_quarantined=max_quarantined)

    def submit(self, tasks: Sequence[TaskT]) -> None:
        """Queues tasks; returns at once. A task whose pair is already pending is dropped."""
        for task in tasks:
            self._queue.add(task.pair_id, task)

    def collect(self) -> list[ResultT | Quarantined]:
        """Runs leases until there is a result; returns an empty list when nothing is pending.

        Ends because every lease ends, and a task is on a bounded number of them.
        """
        while given := self._queue.hand_out([_HERE], num_coming=0, most=self._lease):
            try:
                return list(self._run(given[_HERE]))
            except WorkerError as error:
                if lost := self._queue.fail(_HERE, str(error)):
                    log.warning("pair %s is set aside: %s", lost[0].pair_id, error)
                    return list(lost)
                log.warning("trying again, each group alone: %s", error)
            finally:
                self._queue.finish(_HERE)
        return []

    def poll(self) -> list[ResultT | Quarantined]:
        """Returns nothing: the work is done in ``collect``, while somebody waits for it."""
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
        self._queue.forget()

    def close(self) -> None:
        """Forgets queued tasks."""
        self.forget()
