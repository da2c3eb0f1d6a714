"""Work queue of a pool: waiting tasks, leases, failed attempts and quarantine. It does no I/O and never waits.

    add ──► fresh ──hand_out──► lease ──finish──► done
                                 │ └─give_back─► fresh (no attempt is counted)
                                 └──fail──► suspects, each leased alone ──► ... ──► Quarantined

A lease is the set of tasks that a worker is to work on. Its tasks are finished one by one or together, and ``hand_out``
may add fresh tasks to the lease of a worker that accepts them while it is busy.

When a worker fails on a lease of several tasks, each of them is retried in a lease of its own, to isolate the one that
causes the failure. With the default of three attempts, a task is quarantined when it also fails alone on two workers.
While suspects wait, no lease is extended, so that workers become idle and take them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from saga_dist.errors import WorkerError
from saga_dist.types import Quarantined

TaskT = TypeVar("TaskT")
WorkerT = TypeVar("WorkerT", bound=Hashable)


@dataclass(slots=True)
class _Entry(Generic[TaskT]):
    """A pending task."""

    task: TaskT
    """The task."""
    attempts: int = 0
    """Number of failed attempts."""


class WorkQueue(Generic[TaskT]):
    """Pending tasks by key. Each task is waiting or on exactly one lease, and a worker has at most one lease.

    Args:
        max_attempts: failed attempts after which a task is quarantined; a failed lease counts for all its tasks.
        max_quarantined: number of quarantined tasks above which ``fail`` raises.
    """

    def __init__(self, *, max_attempts: int, max_quarantined: int) -> None:
        self._max_attempts, self._max_quarantined = max_attempts, max_quarantined
        self._entries: dict[str, _Entry[TaskT]] = {}
        """Tasks that are not done, by key."""
        self._fresh: deque[str] = deque()
        """Keys of waiting tasks that have not failed."""
        self._suspects: deque[str] = deque()
        """Keys of waiting tasks whose lease has failed; each is leased alone."""
        self._leases: dict[Hashable, dict[str, TaskT]] = {}
        """Tasks on each worker's lease, by key, without cancelled and forgotten ones."""
        self._changed = set[Hashable]()
        """Workers whose lease has changed since the last ``take_changed``."""
        self._num_quarantined = 0
        self._counts = dict.fromkeys(("leases", "retries", "quarantined", "duplicates", "cancelled"), 0)

    def __len__(self) -> int:
        """Returns the number of tasks that are waiting or on a lease."""
        return len(self._entries)

    @property
    def num_waiting(self) -> int:
        """Number of tasks that are on no lease."""
        return len(self._fresh) + len(self._suspects)

    @property
    def num_leased(self) -> int:
        """Number of tasks that are on a lease."""
        return len(self._entries) - self.num_waiting

    @property
    def num_leases(self) -> int:
        """Number of workers that have a lease."""
        return len(self._leases)

    def add(self, key: str, task: TaskT) -> None:
        """Queues a task; a task whose key is already pending is dropped and counted as a duplicate."""
        if key in self._entries:
            self.count_duplicates(1)
            return
        self._entries[key] = _Entry(task)
        self._fresh.append(key)

    def count_duplicates(self, number: int) -> None:
        """Adds to the count of tasks or results that were dropped because their key is handled elsewhere."""
        self._counts["duplicates"] += number

    def hand_out(
        self, idle: Sequence[WorkerT], *, busy: Sequence[WorkerT] = (), num_coming: int, most: int
    ) -> dict[WorkerT, list[TaskT]]:
        """Leases waiting tasks to workers: suspects alone to idle ones, fresh tasks so that all have equally many.

        Args:
            idle: workers without a lease; no more of them are read than get one.
            busy: workers with a lease that accept more tasks.
            num_coming: workers that are starting. They count in the shares; otherwise the first worker that is ready
                would get all tasks.
            most: largest number of tasks on a lease.

        Returns:
            The new tasks of each worker that got any.
        """
        handed_out = dict[WorkerT, list[TaskT]]()
        for worker in idle[: len(self._suspects)]:
            handed_out[worker] = self._lease(worker, [self._suspects.popleft()])
        if self._suspects or not self._fresh:
            return handed_out
        extensible = [worker for worker in busy if not self._has_suspect(worker)]
        num_free = len(idle) - len(handed_out)
        if not num_free and not extensible:
            return handed_out
        num_tasks = len(self._fresh) + sum(len(self.on_lease(worker)) for worker in extensible)
        share = min(most, -(-num_tasks // (num_free + len(extensible) + num_coming)))
        num_leases = min(num_free, -(-len(self._fresh) // share))
        for worker in (*idle[len(handed_out) : len(handed_out) + num_leases], *extensible):
            num_new = min(share - len(self.on_lease(worker)), len(self._fresh))
            if num_new > 0:
                handed_out[worker] = self._lease(worker, [self._fresh.popleft() for _ in range(num_new)])
        return handed_out

    def on_lease(self, worker: Hashable) -> Mapping[str, TaskT]:
        """Returns the tasks on a worker's lease by key; empty when it has none, or when its tasks were dropped."""
        return self._leases.get(worker, {})

    def take_changed(self) -> set[Hashable]:
        """Returns the workers whose lease got tasks, or lost some that were not finished, since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def finish(self, worker: Hashable, tasks: Iterable[TaskT]) -> frozenset[str]:
        """Takes finished tasks off a worker's lease; returns the keys of those that were on it.

        A task that was cancelled or forgotten is ignored, even if another task with its key is on the lease.
        """
        lease, finished = self._leases.get(worker, {}), {id(task) for task in tasks}
        keys = frozenset(key for key, task in lease.items() if id(task) in finished)
        for key in keys:
            del lease[key], self._entries[key]
        return keys

    def end_lease(self, worker: Hashable) -> tuple[str, ...]:
        """Ends a worker's lease, whose tasks are done; returns their keys, which are no longer pending."""
        lease = self._leases.pop(worker, {})
        for key in lease:
            del self._entries[key]
        return tuple(lease)

    def give_back(self, worker: Hashable) -> None:
        """Ends a lease without counting an attempt; its tasks go back to the front of the queue."""
        self._requeue(self._leases.pop(worker, {}))

    def fail(self, worker: Hashable, reason: str, *, started: Collection[str] | None = None) -> list[Quarantined]:
        """Ends a lease on which the worker failed; each of its tasks will be leased alone.

        Args:
            worker: the worker.
            reason: the failure, one line.
            started: keys of the tasks that the worker had been sent; the others go back to the front of the queue. None
                for all tasks of the lease.

        Returns:
            The tasks that are quarantined now, because they reached ``max_attempts``; they are no longer pending.

        Raises:
            WorkerError: more than ``max_quarantined`` tasks were quarantined.
        """
        quarantined = []
        lease = self._leases.pop(worker, {})
        self._requeue([key for key in lease if started is not None and key not in started])
        for key in lease:
            if started is not None and key not in started:
                continue
            entry = self._entries[key]
            entry.attempts += 1
            if entry.attempts < self._max_attempts:
                self._suspects.append(key)
                continue
            del self._entries[key]
            self._num_quarantined += 1
            self._counts["quarantined"] += 1
            quarantined.append(Quarantined(key, reason, entry.attempts))
        if quarantined and self._num_quarantined > self._max_quarantined:
            raise WorkerError(
                f"{self._num_quarantined} groups failed on {self._max_attempts} workers each, the last one: {reason}",
                where=f"pair {quarantined[-1].pair_id}",
                expected=f"at most {self._max_quarantined} (rollout.max_quarantined)",
                fix="fix the cause, then the same command resumes",
            )
        return quarantined

    def cancel(self, keys: Collection[str]) -> None:
        """Drops tasks; those on a lease are taken off it. Keys that are not pending are ignored."""
        dropped = {key for key in keys if self._entries.pop(key, None) is not None}
        self._counts["cancelled"] += len(dropped)
        for waiting in (self._fresh, self._suspects):
            kept = [key for key in waiting if key not in dropped]
            waiting.clear()
            waiting.extend(kept)
        for worker, lease in self._leases.items():
            for key in dropped & lease.keys():
                del lease[key]
                self._changed.add(worker)

    def forget(self) -> None:
        """Drops all tasks; workers keep their leases, which are empty then."""
        for lease in self._leases.values():
            lease.clear()
        self._changed.update(self._leases)
        for container in (self._entries, self._fresh, self._suspects):
            container.clear()

    def take_counts(self) -> dict[str, int]:
        """Returns the numbers of leases, retries, and quarantined, duplicate or cancelled tasks since the last call."""
        counts, self._counts = self._counts, dict.fromkeys(self._counts, 0)
        return counts

    def _lease(self, worker: Hashable, keys: Sequence[str]) -> list[TaskT]:
        """Puts tasks on the worker's lease, which is new unless it has one; returns the tasks."""
        self._counts["leases"] += worker not in self._leases
        self._counts["retries"] += sum(self._entries[key].attempts > 0 for key in keys)
        tasks = {key: self._entries[key].task for key in keys}
        self._leases.setdefault(worker, {}).update(tasks)
        self._changed.add(worker)
        return list(tasks.values())

    def _has_suspect(self, worker: Hashable) -> bool:
        """Returns True when the task on the worker's lease has failed before, since such a task is alone on it."""
        return any(self._entries[key].attempts for key in islice(self.on_lease(worker), 1))

    def _requeue(self, keys: Collection[str]) -> None:
        """Puts tasks back to the front of those that wait, in their order."""
        for key in reversed(list(keys)):
            (self._suspects if self._entries[key].attempts else self._fresh).appendleft(key)
