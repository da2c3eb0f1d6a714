"""The tasks that a worker has been sent and has not answered. It does no I/O and never waits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from saga_dist.errors import WorkerError

TaskT = TypeVar("TaskT")


@dataclass(frozen=True, slots=True)
class _Sent(Generic[TaskT]):
    """A task that was sent."""

    task: TaskT
    """The task."""
    deadline: float
    """Time by which its result has to come."""


class TasksInFlight(Generic[TaskT]):
    """Tasks in flight at one worker, by key, each with a deadline of its own."""

    def __init__(self) -> None:
        self._sent: dict[str, _Sent[TaskT]] = {}

    @property
    def keys(self) -> Collection[str]:
        """Keys of the tasks."""
        return self._sent.keys()

    def are(self, lease: Mapping[str, TaskT]) -> bool:
        """Returns True when these are the very tasks of a lease; a later task with the same key is another one."""
        return self._sent.keys() == lease.keys() and all(self._sent[key].task is task for key, task in lease.items())

    def update(self, lease: Mapping[str, TaskT], *, deadline: float) -> tuple[list[TaskT], list[str]]:
        """Changes the tasks to those of a lease; returns the ones to send, and the keys of the ones to cancel before.

        Args:
            lease: the tasks that the worker is to have, by key.
            deadline: time by which the results of tasks that are new have to come.
        """
        cancelled = [key for key, sent in self._sent.items() if lease.get(key) is not sent.task]
        for key in cancelled:
            del self._sent[key]
        new = {key: task for key, task in lease.items() if key not in self._sent}
        self._sent |= {key: _Sent(task, deadline) for key, task in new.items()}
        return list(new.values()), cancelled

    def first_deadline(self, *, default: float) -> float:
        """Returns the earliest deadline; ``default`` without tasks."""
        return min((sent.deadline for sent in self._sent.values()), default=default)

    def finish(self, finished: Sequence[str], unfinished: Sequence[str]) -> list[TaskT]:
        """Takes off the tasks that an answer has results of, and returns them in its order.

        Args:
            finished: keys of the results.
            unfinished: keys of the tasks that the worker still has.

        Raises:
            WorkerError: the answer does not have each task once; no task was taken off.
        """
        if sorted([*finished, *unfinished]) != sorted(self._sent):
            different = sorted({*finished, *unfinished} ^ self._sent.keys()) or [*finished, *unfinished]
            num_expected = len(self._sent.keys() - set(unfinished))
            raise WorkerError(
                f"{len(finished)} results for {num_expected} tasks, the first that differs: {different[0]}"
            )
        return [self._sent.pop(key).task for key in finished]

    def clear(self) -> None:
        """Forgets all tasks, because the worker is gone."""
        self._sent.clear()
