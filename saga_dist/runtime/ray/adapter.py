"""Adapter between a pool and one kind of actor, and the settings of a pool: sizes, attempts, deadlines."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import ray

from saga_dist.runtime.ray.errors import WorkerInfo

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

STILL_LOADING = "it has a place and was still loading; raise rollout.start_deadline_s, or see the worker's log"
"""Reason of a start that took too long although no resources are missing."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines of a worker, in seconds."""

    start_s: float
    """Longest time from the creation of the actor until its ``start`` returns."""
    lease_s: float
    """Longest time for a task, from when it is sent to the worker."""
    heartbeat_s: float
    """Longest time that a worker may take to answer a heartbeat."""


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Settings of a pool."""

    workers: int
    """Number of workers at the start, at least 1."""
    tasks_per_lease: int
    """Largest number of tasks on one lease, and so in flight at one worker at any time."""
    max_attempts: int
    """Failures of a task after which it is quarantined; failed starts of each slot after which a pool that never had a
    worker ends."""
    timeouts: Timeouts
    """Deadlines of every worker."""
    max_quarantined: int = 8
    """Largest number of quarantined tasks; the pool ends with an error when there are more."""
    min_workers: int = 1
    """Number of workers that are not released for being idle."""
    idle_release_s: float = 0.0
    """Idle time, seconds, after which a worker is stopped until it is needed again; 0: never."""


class WorkerState(Enum):
    """State of the worker of a slot."""

    GONE = "gone"
    """The slot has no worker; one will be started."""
    STARTING = "starting"
    """The actor was created and its ``start`` has not returned."""
    IDLE = "idle"
    """The worker is up and has no lease."""
    BUSY = "busy"
    """The worker is up and has a lease."""
    RELEASED = "released"
    """The slot has no worker, because there is no work for one."""


UP = (WorkerState.IDLE, WorkerState.BUSY)
"""States in which the worker's actor answers calls."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """Status of one slot of a pool."""

    name: str
    """Name of the slot, ``<role>-<n>``."""
    state: str
    """A value of ``WorkerState``, or ``leaving``."""
    info: WorkerInfo | None
    """Node and process of the worker; None while no worker is up."""
    since: float
    """Time at which the worker came up, seconds since 1970."""


class ActorAdapter(ABC, Generic[TaskT, ResultT]):
    """Base class of the adapters by which a pool creates, calls and kills actors of one kind.

    An actor handle has ``start.remote()``, which returns a ``WorkerInfo``, and ``health.remote()``, which also returns
    while a lease runs. A reference has ``future()``, like ``ray.ObjectRef``.
    """

    name: str
    """Role of the workers; worker ``n`` is called ``<name>-<n>``."""

    @abstractmethod
    def spawn(self) -> Any:
        """Returns the handle of a new actor; its process starts in the background."""

    @abstractmethod
    def send(
        self, actor: Any, tasks: Sequence[TaskT], cancelled: Sequence[str]
    ) -> tuple[ray.ObjectRef, Sequence[ray.ObjectRef]]:
        """Sends tasks to a worker; returns the reference of its answer and the references of the answer's payloads.

        Args:
            actor: handle of the actor.
            tasks: new tasks.
            cancelled: keys of earlier tasks that the worker drops before it takes the new ones.
        """

    @abstractmethod
    def receive(self, answer: Any, payloads: Sequence[ray.ObjectRef]) -> tuple[list[ResultT], Sequence[str]]:
        """Returns the results in an answer, and the keys of the tasks that the worker still has.

        Args:
            answer: the value of the answer's reference.
            payloads: references of the payloads, which need not be fetched.

        Raises:
            SagaError: the answer is not valid.
        """

    def interrupt(self, actor: Any) -> ray.ObjectRef:
        """Makes a worker that is fed answer soon, with the results that it has; returns the reference of the call."""
        raise NotImplementedError(f"{self.name} workers are not fed")

    @abstractmethod
    def task_key(self, task: TaskT) -> str:
        """Returns the pair id of a task."""

    @abstractmethod
    def result_key(self, result: ResultT) -> str:
        """Returns the pair id of a result."""

    def came_up(self, info: WorkerInfo) -> None:
        """Called when a worker has started, with its node and process."""

    def kill(self, actor: Any) -> None:
        """Kills the process of an actor, even if it hangs."""
        ray.kill(actor, no_restart=True)

    async def end(self, actor: Any) -> None:
        """Ends an actor that has started: asks it to close where there is something to close, then kills it."""
        self.kill(actor)

    def missing(self) -> str:
        """Returns the resources that the cluster lacks for the configured workers, as text; empty when it has all."""
        return ""


def answer_of(ref: ray.ObjectRef, on_late: Callable[[Any], None] = lambda result: None) -> asyncio.Future[Any]:
    """Returns a future of the running loop for the result of a call; the caller may set or cancel it earlier.

    Args:
        ref: reference of the call's result; a thread of Ray completes its ``future``.
        on_late: called on the loop with the result when the call returns one after the future was set or cancelled.
    """
    loop = asyncio.get_running_loop()
    answer = loop.create_future()

    def settle(done: Future[Any]) -> None:
        error = done.exception()
        if not answer.done():
            answer.set_result(done.result()) if error is None else answer.set_exception(error)
        elif error is None:
            on_late(done.result())

    def hand_over(done: Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, done)

    ref.future().add_done_callback(hand_over)
    return answer
