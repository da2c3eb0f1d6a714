"""How a pool talks to one kind of actor, and the numbers it keeps to: sizes, attempts, deadlines."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray

from saga_dist.runtime.ray.errors import WorkerInfo

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines of a worker, in seconds."""

    start_s: float
    """Longest time from creating the actor to the answer of its ``start``."""
    lease_s: float
    """Longest time for the answer to a lease."""
    heartbeat_s: float
    """Longest silence of a worker that was asked for a sign of life."""


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Numbers of a pool."""

    workers: int
    tasks_per_lease: int
    """In-flight cap of one worker."""
    max_attempts: int
    """Failures per task before it is quarantined; starts per slot before a pool that never had a worker gives up."""
    timeouts: Timeouts
    max_quarantined: int = 8
    """Tasks that may be quarantined before the run ends."""
    min_workers: int = 1
    """Workers that stay although they idle."""
    idle_release_s: float = 0.0
    """A worker that idled for this long is ended until it is needed again; 0: never."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One slot of a pool at the moment it was asked."""

    name: str
    state: str
    """A value of ``WorkerState``, or ``leaving``."""
    info: WorkerInfo | None
    """Where the worker runs; None while none is up."""
    since: float
    """When the worker came up, seconds since 1970."""


class ActorAdapter(ABC, Generic[TaskT, ResultT]):
    """How a pool creates, uses and ends actors of one kind.

    An actor handle has ``start.remote()``, which answers with a ``WorkerInfo``, and ``health.remote()``, which answers
    while a lease runs. A reference, as ``ray.ObjectRef``, has ``future()``.
    """

    name: str
    """The role; worker ``n`` is called ``<name>-<n>``."""

    @abstractmethod
    def spawn(self) -> Any:
        """Returns the handle of a new actor; its process comes up in the background."""

    @abstractmethod
    def send(self, actor: Any, tasks: Sequence[TaskT]) -> tuple[ray.ObjectRef, Sequence[ray.ObjectRef]]:
        """Starts the work on a lease; returns the reference to wait for, and references to payloads."""

    @abstractmethod
    def receive(self, answer: Any, payloads: Sequence[ray.ObjectRef]) -> list[ResultT]:
        """Returns the results in an answer."""

    @abstractmethod
    def task_key(self, task: TaskT) -> str:
        """Returns the pair id of a task."""

    @abstractmethod
    def result_key(self, result: ResultT) -> str:
        """Returns the pair id of a result."""

    def kill(self, actor: Any) -> None:
        """Ends an actor's process, hung or not."""
        ray.kill(actor, no_restart=True)

    def missing(self) -> str:
        """Returns what the cluster lacks to start the configured workers ('' when nothing)."""
        return ""


def answer_of(ref: ray.ObjectRef, on_late: Callable[[], None] = lambda: None) -> asyncio.Future[Any]:
    """Returns the answer behind a reference as a future of the running loop, which others may settle or cancel first.

    Args:
        ref: of a call; its ``future`` is completed by a thread of Ray's.
        on_late: called on the loop when an answer comes that is no error, after the future was settled otherwise.
    """
    loop = asyncio.get_running_loop()
    answer = loop.create_future()

    def settle(done: Future[Any]) -> None:
        error = done.exception()
        if not answer.done():
            answer.set_result(done.result()) if error is None else answer.set_exception(error)
        elif error is None:
            on_late()

    def hand_over(done: Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, done)

    ref.future().add_done_callback(hand_over)
    return answer
