"""Work queue of a pool: waiting tasks, leases, failed attempts and quarantine. It does no I/O and never waits.

    add ──► fresh ──hand_out──► lease ──finish──► done
                                 │ └─give_back─► fresh (no attempt is counted)
                                 └──fail──► suspects, each leased alone ──► ... ──► Quarantined

When a worker fails on a lease of several tasks, each of them is retried in a lease of its own, to isolate the one that
causes the failure. With the default of three attempts, a task is quarantined when it also fails alone on two workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
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
        self._leases: dict[Hashable, tuple[str, ...]] = {}
        """Keys on each worker's lease, without cancelled ones; empty when the tasks were forgotten."""
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

    def hand_out(self, idle: Sequence[WorkerT], *, num_coming: int, most: int) -> dict[WorkerT, list[TaskT]]:
        """Leases waiting tasks to idle workers, in the order of both: suspects alone, fresh tasks in even shares.

        Args:
            idle: workers without a lease; no more of them are read than get one.
            num_coming: workers that are starting. They count in the shares; otherwise the first worker that is ready
                would get all tasks.
            most: largest number of tasks in a lease.

        Returns:
            The tasks of each worker that got a lease.
        """
        leases = dict[WorkerT, list[TaskT]]()
        for worker in idle[: len(self._suspects)]:
            leases[worker] = self._lease(worker, (self._suspects.popleft(),))
        num_free = len(idle) - len(leases)
        if num_free and self._fresh:
            share = min(most, -(-len(self._fresh) // (num_free + num_coming)))
            num_leases = min(num_free, -(-len(self._fresh) // share))
            for worker in idle[len(leases) : len(leases) + num_leases]:
                keys = tuple(self._fresh.popleft() for _ in range(min(share, len(self._fresh))))
                leases[worker] = self._lease(worker, keys)
        return leases

    def on_lease(self, worker: Hashable) -> tuple[str, ...]:
        """Returns the keys on a worker's lease; empty when it has none, or when its tasks were forgotten."""
        return self._leases.get(worker, ())

    def finish(self, worker: Hashable) -> tuple[str, ...]:
        """Ends a lease whose tasks are done; returns their keys, which are no longer pending."""
        keys = self._leases.pop(worker, ())
        for key in keys:
            del self._entries[key]
        return keys

    def give_back(self, worker: Hashable) -> None:
        """Ends a lease without counting an attempt; its tasks go back to the front of the queue."""
        self._fresh.extendleft(reversed(self._leases.pop(worker, ())))

    def fail(self, worker: Hashable, reason: str) -> list[Quarantined]:
        """Ends a lease on which the worker failed; each of its tasks will be leased alone.

        Args:
            worker: the worker.
            reason: the failure, one line.

        Returns:
            The tasks that are quarantined now, because they reached ``max_attempts``; they are no longer pending.

        Raises:
            WorkerError: more than ``max_quarantined`` tasks were quarantined.
        """
        quarantined = []
        for key in self._leases.pop(worker, ()):
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
        """Drops tasks; those on a lease stay out of its results. Keys that are not pending are ignored."""
        dropped = {key for key in keys if self._entries.pop(key, None) is not None}
        self._counts["cancelled"] += len(dropped)
        for waiting in (self._fresh, self._suspects):
            kept = [key for key in waiting if key not in dropped]
            waiting.clear()
            waiting.extend(kept)
        for worker, on_lease in self._leases.items():
            self._leases[worker] = tuple(key for key in on_lease if key not in dropped)

    def forget(self) -> None:
        """Drops all tasks; workers keep their leases, whose results are then ignored."""
        self._leases = dict.fromkeys(self._leases, ())
        for container in (self._entries, self._fresh, self._suspects):
            container.clear()

    def take_counts(self) -> dict[str, int]:
        """Returns the numbers of leases, retries, and quarantined, duplicate or cancelled tasks since the last call."""
        counts, self._counts = self._counts, dict.fromkeys(self._counts, 0)
        return counts

    def _lease(self, worker: Hashable, keys: tuple[str, ...]) -> list[TaskT]:
        """Puts tasks on a lease of the worker; returns the tasks."""
        assert worker not in self._leases, f"{worker} has a lease already"
        self._leases[worker] = keys
        entries = [self._entries[key] for key in keys]
        self._counts["leases"] += 1
        self._counts["retries"] += sum(entry.attempts > 0 for entry in entries)
        return [entry.task for entry in entries]
