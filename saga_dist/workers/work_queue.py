"""What a pool has to do, who is doing it, and how often it went wrong: the bookkeeping of leases, without any waiting.

    add ──► fresh ──hand_out──► lease ──finish──► done
              ▲                  │ └─give_back─► fresh (nobody's fault)
              │                  └──fail──► suspects, each alone ──► ... ──► Quarantined

Who is guilty when a worker fails on a lease of many tasks? Each of them is tried again alone: the innocent succeed, and
with the default of three attempts a task that also fails alone on two workers is set aside.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from saga_dist.errors import WorkerError
from saga_dist.types import Quarantined

TaskT = TypeVar("TaskT")
WorkerT = TypeVar("WorkerT", bound=Hashable)


@dataclass(slots=True)
class _Entry(Generic[TaskT]):
    task: TaskT
    attempts: int = 0


class WorkQueue(Generic[TaskT]):
    """Pending tasks by key, each waiting or on exactly one lease; one lease per worker at most.

    Args:
        max_attempts: failures of a task, the first perhaps of its whole lease, before it is set aside.
        max_quarantined: tasks that may be set aside before that is an error.
    """

    def __init__(self, *, max_attempts: int, max_quarantined: int) -> None:
        self._max_attempts, self._max_quarantined = max_attempts, max_quarantined
        self._entries: dict[str, _Entry[TaskT]] = {}
        """Every task that is not done."""
        self._fresh: deque[str] = deque()
        self._suspects: deque[str] = deque()
        """Tasks that were on a lease that failed; leased alone from now on."""
        self._leases: dict[Hashable, tuple[str, ...]] = {}
        """By worker; empty for a lease whose tasks were forgotten."""
        self._num_quarantined = 0
        self._counts = dict.fromkeys(("leases", "retries", "quarantined", "duplicates"), 0)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_waiting(self) -> int:
        """Tasks on no lease."""
        return len(self._fresh) + len(self._suspects)

    @property
    def num_leases(self) -> int:
        """Workers with a lease."""
        return len(self._leases)

    def add(self, key: str, task: TaskT) -> None:
        """Queues a task; one whose key is pending already is dropped and counted."""
        if key in self._entries:
            self.count_duplicates(1)
            return
        self._entries[key] = _Entry(task)
        self._fresh.append(key)

    def count_duplicates(self, number: int) -> None:
        """Counts results or tasks that were dropped because their keys are in other hands."""
        self._counts["duplicates"] += number

    def hand_out(self, idle: Sequence[WorkerT], *, num_coming: int, most: int) -> dict[WorkerT, list[TaskT]]:
        """Leases waiting tasks to idle workers, the first ones first: a suspect alone, or an even part of the fresh
        tasks. Looks at no more workers than get a lease.

        Args:
            idle: workers without a lease.
            num_coming: workers about to be idle for the first time; they count, or the first one up would take all.
            most: tasks on one lease.

        Returns the tasks of each worker that got any.
        """
        given = dict[WorkerT, list[TaskT]]()
        for worker in idle[: len(self._suspects)]:
            given[worker] = self._lease(worker, (self._suspects.popleft(),))
        num_free = len(idle) - len(given)
        if num_free and self._fresh:
            share = min(most, -(-len(self._fresh) // (num_free + num_coming)))
            num_leases = min(num_free, -(-len(self._fresh) // share))
            for worker in idle[len(given) : len(given) + num_leases]:
                keys = tuple(self._fresh.popleft() for _ in range(min(share, len(self._fresh))))
                given[worker] = self._lease(worker, keys)
        return given

    def on_lease(self, worker: Hashable) -> tuple[str, ...]:
        """Returns the keys a worker works on: empty when it does not, or when they were forgotten."""
        return self._leases.get(worker, ())

    def finish(self, worker: Hashable) -> tuple[str, ...]:
        """Ends a lease for good; returns the keys that are no longer pending."""
        keys = self._leases.pop(worker, ())
        for key in keys:
            del self._entries[key]
        return keys

    def give_back(self, worker: Hashable) -> None:
        """Ends a lease that came to nothing without anybody's fault: its tasks wait again, at the front."""
        self._fresh.extendleft(reversed(self._leases.pop(worker, ())))

    def fail(self, worker: Hashable, reason: str) -> list[Quarantined]:
        """Ends a lease on which its worker failed; its tasks wait again, each to be leased alone.

        Returns the tasks that have now failed too often; they are no longer pending.

        Raises:
            WorkerError: more tasks were set aside than allowed.
        """
        lost = []
        for key in self._leases.pop(worker, ()):
            entry = self._entries[key]
            entry.attempts += 1
            if entry.attempts < self._max_attempts:
                self._suspects.append(key)
                continue
            del self._entries[key]
            self._num_quarantined += 1
            self._counts["quarantined"] += 1
            lost.append(Quarantined(key, reason, entry.attempts))
        if lost and self._num_quarantined > self._max_quarantined:
            raise WorkerError(
                f"{self._num_quarantined} groups failed on {self._max_attempts} workers each, the last one: {reason}",
                where=f"pair {lost[-1].pair_id}",
                expected=f"at most {self._max_quarantined} (rollout.max_quarantined)",
                fix="mend the cause, then the same command resumes",
            )
        return lost

    def forget(self) -> None:
        """Drops all tasks; what is on a lease is nobody's result any more."""
        self._leases = dict.fromkeys(self._leases, ())
        for store in (self._entries, self._fresh, self._suspects):
            store.clear()

    def take_counts(self) -> dict[str, int]:
        """Returns leases, retries, tasks set aside and duplicates since the last call."""
        counts, self._counts = self._counts, dict.fromkeys(self._counts, 0)
        return counts

    def _lease(self, worker: Hashable, keys: tuple[str, ...]) -> list[TaskT]:
        assert worker not in self._leases, f"{worker} has a lease already"
        self._leases[worker] = keys
        entries = [self._entries[key] for key in keys]
        self._counts["leases"] += 1
        self._counts["retries"] += sum(entry.attempts > 0 for entry in entries)
        return [entry.task for entry in entries]
