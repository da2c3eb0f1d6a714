"""Tasks, results and errors of a pool, which the threads of its callers and its event loop share under one lock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Generic, TypeVar

from saga_dist.errors import SagaError
from saga_dist.runtime.ray.worker_slot import WorkerSlot
from saga_dist.types import Quarantined
from saga_dist.workers.work_queue import WorkQueue

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


class PoolState(Generic[TaskT, ResultT]):
    """Tasks that were submitted to a pool, results that were not collected, and errors that callers have to get.

    Every method takes the lock, which callers may hold. Those that may end a wait of a caller notify it.

    Args:
        queue: the pending tasks, empty.
        result_key: returns the pair id of a result.
    """

    def __init__(self, queue: WorkQueue[TaskT], result_key: Callable[[ResultT], str]) -> None:
        self.lock = threading.Condition()
        """Lock of the state; notified when a waiting caller has to check it."""
        self.queue = queue
        """Pending tasks; to be used by holders of the lock only."""
        self._result_key = result_key
        self._results: list[ResultT | Quarantined] = []
        self._errors: deque[SagaError] = deque()
        """Errors of leases that did not end the pool; each is raised once."""
        self._loop_error: BaseException | None = None
        """Error that ended the event loop; raised by every later call."""
        self.closed = False
        """True when the pool was closed."""

    # ------------------------------------------------------------------ called in any thread

    @property
    def num_pending(self) -> int:
        """Number of tasks whose results were not taken."""
        with self.lock:
            return len(self.queue) + len(self._results)

    def raise_error(self) -> None:
        """Raises the next error, if there is one."""
        with self.lock:
            if self._errors:
                raise self._errors.popleft()
            if self._loop_error is not None:
                raise self._loop_error

    def take_results(self) -> list[ResultT | Quarantined]:
        """Returns the results that have not been taken; raises the next error instead, if there is one."""
        with self.lock:
            self.raise_error()
            results, self._results = self._results, []
            return results

    def cancel(self, pair_ids: Collection[str]) -> None:
        """Drops the tasks of these pairs and their results."""
        dropped = set(pair_ids)
        with self.lock:
            self.queue.cancel(dropped)
            self._results = [result for result in self._results if self._pair_id(result) not in dropped]
            self.lock.notify_all()

    def forget(self) -> None:
        """Drops all tasks, results and errors of leases."""
        with self.lock:
            self.queue.forget()
            self._results.clear()
            self._errors.clear()
            self.lock.notify_all()

    def close(self) -> None:
        """Drops everything, the error of the event loop too."""
        with self.lock:
            self.closed, self._loop_error = True, None
            self.forget()

    # ------------------------------------------------------------------ called in the event loop

    def end_loop(self, error: BaseException | None) -> None:
        """Stores the error that ended the event loop, unless the pool was closed."""
        with self.lock:
            self._loop_error = None if self.closed else error
            self.lock.notify_all()

    def present_lease(self, slot: WorkerSlot[TaskT, ResultT]) -> Mapping[str, TaskT]:
        """Returns the tasks on the lease of a slot; ends the lease when there are none."""
        with self.lock:
            lease = dict(self.queue.on_lease(slot))
            if not lease:
                self.queue.end_lease(slot)
            return lease

    def finish(self, slot: WorkerSlot[TaskT, ResultT], finished: Sequence[tuple[TaskT, ResultT]]) -> None:
        """Stores results, without those of tasks that were cancelled or forgotten meanwhile."""
        with self.lock:
            wanted = self.queue.finish(slot, [task for task, _ in finished])
            self._results += [result for _, result in finished if self._result_key(result) in wanted]
            self.lock.notify_all()

    def refuse(self, slot: WorkerSlot[TaskT, ResultT], error: SagaError) -> None:
        """Ends a lease whose tasks are wrong; the error is raised in place of their results."""
        with self.lock:
            if self.queue.end_lease(slot):  # else all tasks were cancelled or forgotten meanwhile
                self._errors.append(error)
            self.lock.notify_all()

    def fail(self, slot: WorkerSlot[TaskT, ResultT], error: SagaError) -> tuple[int, list[Quarantined]]:
        """Ends the lease of a worker that failed; the tasks that it had are retried one by one, or quarantined.

        Returns the number of tasks that are retried, and those that are quarantined.

        Raises:
            WorkerError: more tasks were quarantined than allowed.
        """
        started = set(slot.in_flight.keys)
        with self.lock:
            num_tasks = len(started & self.queue.on_lease(slot).keys())
            quarantined = self.queue.fail(slot, str(error), started=started)
            self._results += quarantined
            self.lock.notify_all()
        return num_tasks - len(quarantined), quarantined

    def give_back(self, slot: WorkerSlot[TaskT, ResultT]) -> None:
        """Ends the lease of a slot that leaves at once; its tasks are leased again."""
        with self.lock:
            self.queue.give_back(slot)

    def count_duplicates(self, number: int) -> None:
        """Counts results that were dropped because others do, or have done, their tasks."""
        with self.lock:
            self.queue.count_duplicates(number)

    def _pair_id(self, result: ResultT | Quarantined) -> str:
        return result.pair_id if isinstance(result, Quarantined) else self._result_key(result)
