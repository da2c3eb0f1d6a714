"""The desk between a pool's callers and its pump: tasks go in, results come out, each side works at its own pace.

Every method takes the lock for bookkeeping only; nobody holds it while Ray is asked for something. ``knock`` wakes the
pump, the condition wakes callers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from saga_dist.errors import SagaError
from saga_dist.runtime.ray.errors import WorkerInfo
from saga_dist.runtime.ray.usage import Usage
from saga_dist.types import Quarantined
from saga_dist.workers.work_queue import WorkQueue

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
FoundT = TypeVar("FoundT")

_SLICE_S = 1.0
"""Longest wait between two looks."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One place of the pool as the pump last saw it."""

    name: str
    state: str
    """``starting``, ``idle``, ``busy``, ``leaving``, ``released`` or ``gone`` (to be tried again)."""
    info: WorkerInfo | None
    since: float
    """When the worker came up, seconds since 1970."""
    actor: Any


@dataclass(frozen=True, slots=True)
class Orders:
    """What callers want of the crew."""

    target: int
    """Workers."""
    at_once: bool
    """True when those too many must not finish their leases."""
    demand: int
    """Workers that would have something to do."""


class Desk(Generic[TaskT, ResultT]):
    """Queue, results, errors, orders and counters of one pool.

    Args:
        target: workers wanted.
        max_attempts: see ``WorkQueue``.
        max_quarantined: see ``WorkQueue``.
    """

    def __init__(self, *, target: int, max_attempts: int, max_quarantined: int) -> None:
        self.knock = threading.Event()
        self._lock = threading.Condition()
        self._queue: WorkQueue[TaskT] = WorkQueue(max_attempts=max_attempts, max_quarantined=max_quarantined)
        self._done: list[ResultT | Quarantined] = []
        self._errors: deque[SagaError] = deque()
        """What ended a lease but not the pool; each is raised once."""
        self._end: BaseException | None = None
        """What ended the pump; raised again and again."""
        self._closed = False
        self._target, self._at_once = target, False
        self._num_asking = 0
        self._seen: tuple[Seen, ...] = ()
        self._usage = Usage(time.monotonic())
        self._replacements = 0

    # ------------------------------------------------------------------ callers

    def submit(self, tasks: Iterable[tuple[str, TaskT]]) -> None:
        """Queues tasks by key. Raises what ``collect`` raises."""
        with self._lock:
            self._raise_error()
            for key, task in tasks:
                self._queue.add(key, task)
        self.knock.set()

    def collect(self) -> list[ResultT | Quarantined]:
        """Returns at least one result, or an empty list when nothing is pending; raises what the pump left."""
        with self._lock:
            while True:
                self._raise_error()
                if self._done or not len(self._queue):
                    return self._take()
                self._lock.wait(_SLICE_S)

    def poll(self) -> list[ResultT | Quarantined]:
        """Returns the results that are here."""
        with self._lock:
            self._raise_error()
            return self._take()

    def wait_until(self, look: Callable[[tuple[Seen, ...]], FoundT | None], *, deadline: float) -> FoundT | None:
        """Returns what ``look`` finds among the places; None when it is ``deadline`` (monotonic clock) or closed.

        Meanwhile one worker more is in demand. Raises what the pump left.
        """
        with self._lock:
            self._num_asking += 1
            self.knock.set()
            try:
                while not self._closed and time.monotonic() < deadline:
                    self._raise_error()
                    if (found := look(self._seen)) is not None:
                        return found
                    self._lock.wait(_SLICE_S)
            finally:
                self._num_asking -= 1
        return None

    def resize(self, target: int, *, at_once: bool) -> None:
        """Orders another number of workers."""
        with self._lock:
            self._target, self._at_once = target, at_once
        self.knock.set()

    def forget(self) -> None:
        """Drops every task, result and error; what is on a lease is nobody's result any more."""
        with self._lock:
            self._queue.forget()
            self._done.clear()
            self._errors.clear()
            self._lock.notify_all()

    def close(self) -> None:
        """Tells the pump to end, and callers that nothing will come."""
        with self._lock:
            self._closed, self._end = True, None
        self.forget()
        self.knock.set()

    @property
    def closed(self) -> bool:
        """True after ``close``."""
        return self._closed

    @property
    def target(self) -> int:
        """Workers wanted."""
        return self._target

    @property
    def seen(self) -> tuple[Seen, ...]:
        """Every place as last shown, the oldest first."""
        return self._seen

    @property
    def num_pending(self) -> int:
        """Tasks submitted and not yet taken."""
        with self._lock:
            return len(self._queue) + len(self._done)

    def metrics(self) -> dict[str, float]:
        """Returns counters and use of time since the last call, by plain quantity names."""
        with self._lock:
            counts = self._queue.take_counts() | {"replacements": self._replacements}
            self._replacements = 0
            return {
                **{name: float(number) for name, number in counts.items()},
                "workers": float(sum(seen.info is not None for seen in self._seen)),
                **self._usage.take(time.monotonic()),
            }

    # ------------------------------------------------------------------ pump

    def orders(self) -> Orders:
        """Returns what callers want; ``at_once`` is said once."""
        with self._lock:
            at_once, self._at_once = self._at_once, False
            return Orders(self._target, at_once, self._queue.num_waiting + self._queue.num_leases + self._num_asking)

    def hand_out(self, idle: Sequence[str], *, num_coming: int, most: int) -> dict[str, list[TaskT]]:
        """Leases tasks to idle workers, see ``WorkQueue``."""
        with self._lock:
            return self._queue.hand_out(idle, num_coming=num_coming, most=most)

    def on_lease(self, worker: str) -> tuple[str, ...]:
        """Returns the keys a worker works on, without those that were forgotten."""
        with self._lock:
            return self._queue.on_lease(worker)

    def deliver(self, worker: str, results: Sequence[ResultT]) -> None:
        """Takes the results of a lease, unless it was forgotten."""
        with self._lock:
            if self._queue.finish(worker):
                self._done.extend(results)
                self._lock.notify_all()

    def refuse(self, worker: str, error: SagaError) -> None:
        """Notes an error that every worker would repeat, unless the lease was forgotten."""
        with self._lock:
            if self._queue.finish(worker):
                self._errors.append(error)
                self._lock.notify_all()

    def fail(self, worker: str, reason: str) -> list[Quarantined]:
        """Returns the tasks that are set aside because of a failed lease; they are results like others."""
        with self._lock:
            lost = self._queue.fail(worker, reason)
            self._done.extend(lost)
            self._lock.notify_all()
            return lost

    def give_back(self, worker: str) -> None:
        """Ends a lease that came to nothing without anybody's fault."""
        with self._lock:
            self._queue.give_back(worker)

    def count_late(self, number: int) -> None:
        """Counts groups that came too late and were dropped."""
        with self._lock:
            self._queue.count_duplicates(number)

    def count_replacement(self) -> None:
        """Counts a worker that had to be replaced."""
        with self._lock:
            self._replacements += 1

    def show(self, seen: Sequence[Seen], *, running: Sequence[str], busy: Sequence[str]) -> None:
        """Publishes who is there, who is up and who works."""
        with self._lock:
            self._seen = tuple(seen)
            self._usage.note(time.monotonic(), running=running, busy=busy)
            if self._num_asking:
                self._lock.notify_all()

    def end(self, error: BaseException | None) -> None:
        """Notes that the pump has ended, and why."""
        with self._lock:
            self._end, self._seen = None if self._closed else error, ()
            self._usage.note(time.monotonic(), running=(), busy=())
            self._lock.notify_all()

    def _raise_error(self) -> None:
        if self._errors:
            raise self._errors.popleft()
        if self._end is not None:
            raise self._end

    def _take(self) -> list[ResultT | Quarantined]:
        done, self._done = self._done, []
        return done
