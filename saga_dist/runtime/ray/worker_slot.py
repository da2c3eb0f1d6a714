"""One slot of a pool: the life of a worker, and of the workers that take its place when it fails.

    GONE ──start──► STARTING ──next_lease──► IDLE ───assign────► BUSY
     ▲ ▲               │                     │ │ ◄─next_lease──  │
     │ └────failure────┴─────────────────────│─┴─────────────────┘
     └───readmit─── RELEASED ◄───release─────┘

A slot waits for one thing at a time: the answer of ``start``, the next lease, or the answer to a lease. Whichever comes
first ends the wait: that, the deadline, ``leave`` or the heartbeat. The heartbeat asks a worker that was silent for
half of ``heartbeat_s`` for a sign of life and gives it ``heartbeat_s`` to answer, so a worker that hangs is found after
one and a half heartbeats at most.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any, Generic, TypeVar

from ray.exceptions import RayError

from saga_dist.errors import DeadlineExceeded, SagaError, WorkerError
from saga_dist.runtime.ray.adapter import ActorAdapter, Timeouts, WorkerStatus, answer_of
from saga_dist.runtime.ray.errors import WorkerInfo, to_saga_error

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
AnswerT = TypeVar("AnswerT")
log = logging.getLogger(__name__)


class WorkerState(Enum):
    """What the worker of a slot is doing."""

    GONE = "gone"
    """No worker is there; one will be started."""
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RELEASED = "released"
    """No worker is there, because none is needed."""


UP = (WorkerState.IDLE, WorkerState.BUSY)
"""States in which the worker's process can be talked to."""


class Evicted(Exception):
    """The slot has to end at once; nobody is to blame."""


class WorkerSlot(Generic[TaskT, ResultT]):
    """Room for one worker, whose actor may change. Belongs to the event loop that it is made on.

    Args:
        name: for logs and errors.
        seniority: number of slots that the pool had before.
        adapter: how to talk to the worker.
        timeouts: of the worker.
        on_change: called with the slot and its previous state whenever the state has changed.
    """

    def __init__(
        self,
        name: str,
        seniority: int,
        adapter: ActorAdapter[TaskT, ResultT],
        timeouts: Timeouts,
        on_change: Callable[[WorkerSlot[TaskT, ResultT], WorkerState], None],
    ) -> None:
        self.name, self.seniority, self.state = name, seniority, WorkerState.GONE
        self._adapter, self._timeouts, self._on_change = adapter, timeouts, on_change
        self._loop = asyncio.get_running_loop()
        self.actor: Any = None
        self.info: WorkerInfo | None = None
        """Where the worker runs; None while none is up."""
        self.since = 0.0
        """When the worker came up, seconds since 1970."""
        self.down_since = self._loop.time()
        """When the slot last lost its worker, or was first to have one; of the loop's clock."""
        self.failed_starts = 0
        """Starts that failed since a worker was last up."""
        self.leaving = False
        """True when the slot ends with its lease."""
        self._lease: list[TaskT] | None = None
        self._waiting: asyncio.Future[Any] = self._loop.create_future()
        """What the slot's coroutine awaits."""
        self._interruption: BaseException | None = None
        """What ended the worker, or the slot, before its time."""
        self._heartbeat: asyncio.Task[None] | None = None
        self._last_sign = 0.0
        """When the worker last showed that it lives; of the loop's clock."""

    # ------------------------------------------------------------------ what others see and ask for

    @property
    def evicted(self) -> bool:
        """True when the slot has ended or is about to."""
        return isinstance(self._interruption, Evicted)

    def status(self) -> WorkerStatus:
        """Returns what the slot is doing; may be called from any thread."""
        return WorkerStatus(self.name, "leaving" if self.leaving else self.state.value, self.info, self.since)

    def assign(self, tasks: list[TaskT]) -> None:
        """Gives an idle worker a lease."""
        self._lease = tasks
        self._enter(WorkerState.BUSY)
        if not self._waiting.done():  # its patience may have ended in this very turn of the loop
            self._waiting.set_result(None)

    def leave(self, *, at_once: bool) -> None:
        """Ends the slot: now, or, when it is busy and not ``at_once``, with its lease."""
        self.leaving = True
        if (at_once or self.state is not WorkerState.BUSY) and not self.evicted:
            self._interrupt(Evicted())

    def release(self) -> None:
        """Ends the worker until ``readmit``."""
        self.kill()
        self._enter(WorkerState.RELEASED)

    def readmit(self) -> None:
        """Lets a released slot start a worker again."""
        self.down_since, self.failed_starts = self._loop.time(), 0
        self._enter(WorkerState.GONE)
        self._waiting.set_result(None)

    def kill(self) -> None:
        """Ends the worker's process, hung or not, and leaves the slot empty."""
        if self.state in UP:
            self.down_since = self._loop.time()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if self.actor is not None:
            self._adapter.kill(self.actor)
        self.actor, self.info, self._heartbeat = None, None, None
        self._enter(WorkerState.GONE)

    # ------------------------------------------------------------------ what its coroutine awaits

    async def start(self) -> None:
        """Brings a worker up.

        Raises:
            SagaError: it did not start, or not in time; the slot is empty again.
            Evicted: the slot was evicted.
        """
        self._interruption = None
        self.actor = self._adapter.spawn()
        self._enter(WorkerState.STARTING)
        started = self._loop.time()
        try:
            info: WorkerInfo = await self._answer(answer_of(self.actor.start.remote()), self._timeouts.start_s)
        except TimeoutError:
            self._start_failed()
            what = f"not started within {self._timeouts.start_s:g} s"
            raise DeadlineExceeded(what, where=self.name, fix=self._adapter.missing()) from None
        except SagaError:
            self._start_failed()
            raise
        self.info, self.since, self.failed_starts = info, time.time(), 0
        self._heartbeat = self._loop.create_task(self._watch_heartbeat(), name=f"heartbeat of {self.name}")
        self._heartbeat.add_done_callback(self._heartbeat_ended)
        log.info("%s is up after %.1f s (pid %d)", self.name, self._loop.time() - started, info.pid)

    async def next_lease(self, patience_s: float | None) -> list[TaskT] | None:
        """Returns the tasks of the next lease; None when none came within ``patience_s`` seconds.

        Raises:
            SagaError: the worker died or fell silent while it was idle.
            Evicted: the slot was evicted.
        """
        self._lease = None
        self._enter(WorkerState.IDLE)
        with suppress(TimeoutError):
            await self._wait_for(self._loop.create_future(), patience_s)
        return self._lease

    async def run(self, tasks: Sequence[TaskT], on_late: Callable[[], None]) -> list[ResultT]:
        """Returns the results of a lease, one per task.

        Args:
            tasks: of the lease.
            on_late: called when the answer comes after all, although an error was raised here.

        Raises:
            FATAL: the worker refused the tasks, as every other would; it is as good as before.
            SagaError: the worker failed, fell silent, was late or gave a wrong answer, and has to be replaced.
            Evicted: the slot was evicted.
        """
        ref, payloads = self._adapter.send(self.actor, tasks)
        try:
            value = await self._answer(answer_of(ref, on_late), self._timeouts.lease_s)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {self._timeouts.lease_s:g} s", where=self.name) from None
        try:
            results = self._adapter.receive(value, payloads)
        except SagaError as error:
            raise WorkerError(f"a wrong answer: {error}", where=self.name) from error
        self._check(tasks, results)
        return results

    async def pause(self, seconds: float) -> None:
        """Waits for so long; raises ``Evicted`` when the slot was evicted."""
        with suppress(TimeoutError):
            await self._wait_for(self._loop.create_future(), seconds)

    async def until_readmitted(self) -> None:
        """Waits for ``readmit``; raises ``Evicted`` when the slot was evicted."""
        await self._wait_for(self._loop.create_future(), None)

    # ------------------------------------------------------------------ inside

    def _enter(self, state: WorkerState) -> None:
        before, self.state = self.state, state
        if state is not before:
            self._on_change(self, before)

    def _start_failed(self) -> None:
        self.failed_starts += 1
        self.kill()

    def _check(self, tasks: Sequence[TaskT], results: Sequence[ResultT]) -> None:
        """Takes the results of a lease all or none: an answer with one pair too many or too few is worth nothing."""
        expected = [self._adapter.task_key(task) for task in tasks]
        keys = [self._adapter.result_key(result) for result in results]
        if sorted(keys) != sorted(expected):
            strange = (sorted(set(keys) ^ set(expected)) or keys)[0]
            what = f"{len(keys)} results for {len(expected)} tasks, the first that differs: {strange}"
            raise WorkerError(f"a wrong answer: {what}", where=self.name)

    async def _answer(self, answer: asyncio.Future[AnswerT], timeout_s: float) -> AnswerT:
        """Returns an answer of the worker; raises what ``_wait_for`` raises, errors of Ray as our own."""
        try:
            return await self._wait_for(answer, timeout_s)
        except RayError as error:
            raise to_saga_error(error, where=self.name, info=self.info) from error
        finally:
            self._last_sign = self._loop.time()  # an error is an answer too; without one the worker is killed

    async def _wait_for(self, wanted: asyncio.Future[AnswerT], timeout_s: float | None) -> AnswerT:
        """Returns the result of ``wanted``, unless the deadline or an interruption comes first.

        Raises:
            TimeoutError: ``timeout_s`` seconds are over.
            SagaError: the heartbeat found the worker dead or silent.
            Evicted: the slot was evicted.
        """
        self._waiting = wanted
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, _time_out, wanted)
        try:
            result = await wanted
        finally:
            if timer is not None:
                timer.cancel()
        if self._interruption is not None:  # it came after the result, but before this coroutine went on
            raise self._interruption
        return result

    def _interrupt(self, reason: BaseException) -> None:
        """Ends the worker, and the wait of the slot's coroutine."""
        self._interruption = reason
        if not self._waiting.done():
            self._waiting.set_exception(reason)
        self.kill()

    async def _watch_heartbeat(self) -> None:
        """Asks a silent worker for a sign of life, again and again; ends with an error when none comes in time."""
        while True:
            while (rest_s := self._last_sign + self._timeouts.heartbeat_s / 2 - self._loop.time()) > 0:
                await asyncio.sleep(rest_s)
            heartbeat_s, asked_at = self._timeouts.heartbeat_s, self._loop.time()
            try:
                async with asyncio.timeout(heartbeat_s):
                    await answer_of(self.actor.health.remote())
                self._last_sign = self._loop.time()
            except RayError as error:
                raise to_saga_error(error, where=self.name, info=self.info) from error
            except TimeoutError:
                if self._last_sign <= asked_at:
                    raise DeadlineExceeded(f"no sign of life for {heartbeat_s:g} s", where=self.name) from None

    def _heartbeat_ended(self, heartbeat: asyncio.Task[None]) -> None:
        if not heartbeat.cancelled() and (error := heartbeat.exception()) is not None:
            self._interrupt(error)


def _time_out(wanted: asyncio.Future[Any]) -> None:
    if not wanted.done():
        wanted.set_exception(TimeoutError())
