"""The serial worker pool, which needs no Ray, and functions that run a set of tasks on any pool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, Generic, Protocol, TypeVar

from saga_dist.errors import TrainingError, WorkerError
from saga_dist.protocols import WorkerPool
from saga_dist.types import Quarantined
from saga_dist.workers.work_queue import WorkQueue

ResultT = TypeVar("ResultT")
log = logging.getLogger(__name__)

_WORKER = "serial"
"""Name of the only worker in the work queue."""


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
    """Returns the results of all tasks, ``Quarantined`` ones included, in order of arrival.

    It waits in ``collect`` only, which always ends.

    Raises:
        TrainingError: the pool returned fewer results than it was given tasks.
    """
    pool.submit(tasks)
    results: list[Any] = []
    while len(results) < len(tasks):
        arrived = pool.collect()
        if not arrived:
            raise TrainingError(f"{len(tasks) - len(results)} tasks vanished from the pool", where="worker pool")
        results.extend(arrived)
    return results


class SerialTask(Protocol):
    """A task of the serial pool."""

    @property
    def pair_id(self) -> str:
        """Id of the pair, by which the pool identifies the task."""


TaskT = TypeVar("TaskT", bound=SerialTask)


class SerialPool(Generic[TaskT, ResultT]):
    """Pool of one worker in this process; ``collect`` runs the next lease and returns its results.

    Args:
        run: runs the tasks of one lease; returns one result per task, in order.
        lease: largest number of tasks in a lease.
        max_attempts: failed attempts after which a task is quarantined; a failed lease counts for all its tasks.
        max_quarantined: number of quarantined tasks above which the pool raises.
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
        """Queues tasks; does not wait for them. A task whose pair is already pending is dropped."""
        for task in tasks:
            self._queue.add(task.pair_id, task)

    def collect(self) -> list[ResultT | Quarantined]:
        """Runs leases until there is a result; returns an empty list when nothing is pending.

        It always ends, because every lease ends and the number of attempts per task is bounded.

        Raises:
            UserError: a task shows a mistake of the user.
            WorkerError: more than ``max_quarantined`` tasks were quarantined.
        """
        while leases := self._queue.hand_out([_WORKER], num_coming=0, most=self._lease):
            try:
                return list(self._run(leases[_WORKER]))
            except WorkerError as error:
                if quarantined := self._queue.fail(_WORKER, str(error)):
                    log.warning("pair %s is quarantined: %s", quarantined[0].pair_id, error)
                    return list(quarantined)
                log.warning("a lease failed, each of its groups is tried again alone: %s", error)
            finally:
                self._queue.end_lease(_WORKER)
        return []

    def poll(self) -> list[ResultT | Quarantined]:
        """Returns an empty list, because all tasks run within ``collect``."""
        return []

    @property
    def num_pending(self) -> int:
        """Number of tasks that were submitted and whose results were not collected."""
        return len(self._queue)

    @property
    def runs_in_background(self) -> bool:
        """False, because all tasks run within ``collect``."""
        return False

    def metrics(self) -> dict[str, float]:
        """Returns no metrics: one process has no leases, heartbeats or replacements to report."""
        return {}

    def cancel(self, pair_ids: Collection[str]) -> None:
        """Drops the queued tasks of these pairs."""
        self._queue.cancel(pair_ids)

    def forget(self) -> None:
        """Drops all queued tasks."""
        self._queue.forget()

    def close(self) -> None:
        """Drops all queued tasks."""
        self.forget()
