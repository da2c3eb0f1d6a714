"""One slot of a pool: states, deadlines and heartbeat of its worker, and of the workers that replace it.

    GONE ──start──► STARTING ──next_lease──► IDLE ───assign────► BUSY ──run─┐
     ▲ ▲               │                     │ │ ◄─next_lease──  │ ▲ ◄──────┘
     │ └────failure────┴─────────────────────│─┴─────────────────┘
     └───readmit─── RELEASED ◄───release─────┘

A worker that retires goes from IDLE, or after its lease from BUSY, to GONE without a failure.

A slot waits for one thing at a time: the answer of ``start``, a lease, or an answer in ``run``. The deadline, an
eviction (``leave``) or the heartbeat can end the wait earlier. The heartbeat calls ``health`` of a worker that has not
answered anything for half of ``heartbeat_s``, and the worker has ``heartbeat_s`` to answer. So a hang is detected after
at most 1.5 * ``heartbeat_s``.

Each ``run`` brings the tasks in flight at the worker in line with its lease, then waits for an answer. The answer of a
worker that is fed (``WorkerInfo.is_fed``) has at least one result, unless ``interrupt`` asked for it because the lease
has changed; the answer of any other worker has the results of the whole lease. A task has its own deadline, which
begins when it is sent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar

from ray.exceptions import RayError

from saga_dist.errors import DeadlineExceeded, SagaError, WorkerError
from saga_dist.runtime.ray.adapter import (
    STILL_LOADING,
    UP,
    ActorAdapter,
    Timeouts,
    WorkerState,
    WorkerStatus,
    answer_of,
)
from saga_dist.runtime.ray.errors import WorkerInfo, to_saga_error
from saga_dist.runtime.ray.tasks_in_flight import TasksInFlight

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
AnswerT = TypeVar("AnswerT")
log = logging.getLogger(__name__)


class Evicted(Exception):
    """Ends the coroutine of a slot that has to end at once; it is not a failure of the worker."""


class WorkerSlot(Generic[TaskT, ResultT]):
    """A slot of a pool for one worker, whose actor is replaced when it fails.

    All methods but ``status`` must be called on the event loop on which the slot was created.

    Args:
        name: name of the slot, for logs and errors.
        seniority: number of slots that the pool created before this one.
        adapter: creates, calls and kills the actor.
        timeouts: deadlines of the worker.
        on_change: called with the slot and its previous state after every change of the state.
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
        """Node and process of the worker; None while no worker is up."""
        self.since = 0.0
        """Time at which the worker came up, seconds since 1970."""
        self.down_since = self._loop.time()
        """Time of the loop's clock since which the slot has had no worker that was up."""
        self.failed_starts = 0
        """Number of starts that failed since a worker was last up."""
        self.leaving = False
        """True when the slot ends after its present lease, if it has one."""
        self.retiring = False
        """True when the worker ends after its present lease, if it has one, and another one is started in its place."""
        self.in_flight = TasksInFlight[TaskT]()
        """Tasks that the worker has, also ones that have left its lease until the next ``run``; or, after a failure,
        tasks that the last worker had."""
        self._may_interrupt = False
        """True while ``run`` waits for an answer that has not been asked for by ``interrupt`` yet."""
        self._waiting: asyncio.Future[Any] = self._loop.create_future()
        """Future that the slot's coroutine awaits."""
        self._interruption: BaseException | None = None
        """Error that ended the worker or the slot while the coroutine was waiting."""
        self._heartbeat: asyncio.Task[None] | None = None
        self._endings: set[asyncio.Task[None]] = set()
        """Ends of earlier workers that are in progress."""
        self._last_answer_at = 0.0
        """Time of the loop's clock at which the worker last answered a call."""

    # ------------------------------------------------------------------ called by pool and group

    @property
    def evicted(self) -> bool:
        """True when the slot was evicted and its coroutine has ended or is about to."""
        return isinstance(self._interruption, Evicted)

    def status(self) -> WorkerStatus:
        """Returns the status of the slot; may be called in any thread."""
        return WorkerStatus(self.name, self.state.value if self.serves else "leaving", self.info, self.since)

    @property
    def serves(self) -> bool:
        """True when the worker may get tasks after its present lease."""
        return not (self.leaving or self.retiring)

    @property
    def is_fed(self) -> bool:
        """True when tasks can be added to the lease of the worker, and taken off it, while it is busy."""
        return self.info is not None and self.info.is_fed

    def assign(self) -> None:
        """Tells the worker, which must be idle, that it has a lease."""
        self._enter(WorkerState.BUSY)
        if not self._waiting.done():  # the timeout of next_lease may have come in the same turn of the loop
            self._waiting.set_result(None)

    def interrupt(self) -> None:
        """Makes ``run`` return soon if the worker is fed, because its lease has changed."""
        if self._may_interrupt and self.is_fed:
            self._may_interrupt = False
            self._call_interrupt()

    def leave(self, *, at_once: bool) -> None:
        """Ends the slot: after its lease when it is busy and not ``at_once``, else now."""
        self.leaving = True
        if (at_once or self.state is not WorkerState.BUSY) and not self.evicted:
            self._interrupt(Evicted())

    def retire(self) -> None:
        """Ends the worker, which must be up, after its lease when it is busy, else now; the slot starts another one."""
        self.retiring = True
        if self.state is WorkerState.IDLE:
            self.kill()
            if not self._waiting.done():  # as in ``assign``
                self._waiting.set_result(None)

    def release(self) -> None:
        """Stops the worker; the slot has none until ``readmit``."""
        self.kill()
        self._enter(WorkerState.RELEASED)

    def readmit(self) -> None:
        """Makes a released slot start a worker again."""
        self.down_since, self.failed_starts = self._loop.time(), 0
        self._enter(WorkerState.GONE)
        self._waiting.set_result(None)

    def kill(self) -> None:
        """Ends the worker; the slot has none then.

        A worker that is up is asked to close and killed at a deadline, in the background (``until_ended``). One that is
        starting is killed at once.
        """
        if self.state in UP:
            self.down_since = self._loop.time()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if self.is_fed and self.state is WorkerState.BUSY:
            self._call_interrupt()  # so that it can close before it is killed
        if self.actor is not None and self.info is not None:
            ending = self._loop.create_task(self._adapter.end(self.actor), name=f"end of {self.name}")
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)
        elif self.actor is not None:
            self._adapter.kill(self.actor)
        self.actor, self.info, self._heartbeat = None, None, None
        self._enter(WorkerState.GONE)

    # ------------------------------------------------------------------ awaited by the slot's coroutine

    async def start(self) -> None:
        """Creates an actor and waits until its worker is up.

        Raises:
            SagaError: the worker did not start, or not in time; the slot has no worker then.
            Evicted: the slot was evicted.
        """
        self._interruption, self.retiring = None, False
        self.in_flight.clear()
        self.actor = self._adapter.spawn()
        self._enter(WorkerState.STARTING)
        started = self._loop.time()
        try:
            info: WorkerInfo = await self._answer(answer_of(self.actor.start.remote()), self._timeouts.start_s)
        except TimeoutError:
            reason = self._adapter.missing() or STILL_LOADING  # asked before the actor is killed, which waits no more
            self._start_failed()
            what = f"not started within {self._timeouts.start_s:g} s"
            raise DeadlineExceeded(what, where=self.name, fix=reason) from None
        except SagaError:
            self._start_failed()
            raise
        self.info, self.since, self.failed_starts = info, time.time(), 0
        self._adapter.came_up(info)
        self._heartbeat = self._loop.create_task(self._watch_heartbeat(), name=f"heartbeat of {self.name}")
        self._heartbeat.add_done_callback(self._heartbeat_ended)
        log.info("%s is up after %.1f s (pid %d)", self.name, self._loop.time() - started, info.pid)

    async def next_lease(self, timeout_s: float | None) -> bool:
        """Waits for a lease; returns True when there is one, False after ``timeout_s`` seconds without one.

        Args:
            timeout_s: longest time to wait, seconds; None: no limit.

        Raises:
            SagaError: the idle worker died or missed its heartbeat.
            Evicted: the slot was evicted.
        """
        self._enter(WorkerState.IDLE)
        with suppress(TimeoutError):
            await self._wait_for(self._loop.create_future(), timeout_s)
        return self.state is WorkerState.BUSY

    async def run(self, lease: Mapping[str, TaskT], on_late: Callable[[int], None]) -> list[tuple[TaskT, ResultT]]:
        """Sends what is new on the lease, cancels what has left it, and returns the tasks of the next answer.

        Args:
            lease: the tasks that the worker is to work on, by key.
            on_late: called with the number of results when the answer arrives after an error was raised here.

        Raises:
            FATAL: the worker refused the tasks, as every worker would; it remains usable.
            SagaError: the worker failed, missed its heartbeat or a deadline, or gave a wrong answer; it has to be
                replaced.
            Evicted: the slot was evicted.
        """
        now, lease_s = self._loop.time(), self._timeouts.lease_s
        new, cancelled = self.in_flight.update(lease, deadline=now + lease_s)
        timeout_s = self.in_flight.first_deadline(default=now + lease_s) - now
        ref, payloads = self._adapter.send(self.actor, new, cancelled)

        def count_late(value: Any) -> None:
            with suppress(SagaError):
                results, _ = self._adapter.receive(value, payloads)
                if results:
                    on_late(len(results))

        self._may_interrupt = True
        try:
            value = await self._answer(answer_of(ref, count_late), timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {lease_s:g} s", where=self.name) from None
        finally:
            self._may_interrupt = False
        try:
            results, unfinished = self._adapter.receive(value, payloads)
            tasks = self.in_flight.finish([self._adapter.result_key(result) for result in results], unfinished)
        except SagaError as error:
            raise WorkerError(f"a wrong answer: {error}", where=self.name) from error
        return list(zip(tasks, results, strict=True))

    async def pause(self, seconds: float) -> None:
        """Waits for a number of seconds; raises ``Evicted`` when the slot is evicted."""
        with suppress(TimeoutError):
            await self._wait_for(self._loop.create_future(), seconds)

    async def until_ended(self) -> None:
        """Waits until no earlier worker of the slot is left."""
        if self._endings:
            await asyncio.gather(*self._endings, return_exceptions=True)

    async def until_readmitted(self) -> None:
        """Waits for ``readmit``; raises ``Evicted`` when the slot is evicted."""
        await self._wait_for(self._loop.create_future(), None)

    # ------------------------------------------------------------------ internal

    def _enter(self, state: WorkerState) -> None:
        before, self.state = self.state, state
        if state is not before:
            self._on_change(self, before)

    def _call_interrupt(self) -> None:
        call = answer_of(self._adapter.interrupt(self.actor))
        call.add_done_callback(lambda done: done.cancelled() or done.exception())  # others notice a dead worker

    def _start_failed(self) -> None:
        self.failed_starts += 1
        self.kill()

    async def _answer(self, answer: asyncio.Future[AnswerT], timeout_s: float) -> AnswerT:
        """Returns an answer of the worker; raises the errors of ``_wait_for``, and errors of Ray as a ``SagaError``."""
        try:
            return await self._wait_for(answer, timeout_s)
        except RayError as error:
            raise to_saga_error(error, where=self.name, info=self.info) from error
        finally:
            self._last_answer_at = self._loop.time()  # also after an error; a worker that did not answer is killed

    async def _wait_for(self, wanted: asyncio.Future[AnswerT], timeout_s: float | None) -> AnswerT:
        """Returns the result of a future, unless the timeout or an interruption comes first.

        Raises:
            TimeoutError: ``timeout_s`` seconds have passed.
            SagaError: the worker died or missed its heartbeat.
            Evicted: the slot was evicted.
        """
        self._waiting = wanted
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, _time_out, wanted)
        try:
            result = await wanted
        finally:
            if timer is not None:
                timer.cancel()
        if self._interruption is not None:  # set after the result, but before this coroutine resumed
            raise self._interruption
        return result

    def _interrupt(self, reason: BaseException) -> None:
        """Kills the worker and raises ``reason`` in the slot's coroutine."""
        self._interruption = reason
        if not self._waiting.done():
            self._waiting.set_exception(reason)
        self.kill()

    async def _watch_heartbeat(self) -> None:
        """Calls ``health`` whenever the worker has not answered for half a heartbeat; runs until the task is cancelled.

        Raises:
            SagaError: the worker died, or did not answer anything within a heartbeat.
        """
        while True:
            while (wait_s := self._last_answer_at + self._timeouts.heartbeat_s / 2 - self._loop.time()) > 0:
                await asyncio.sleep(wait_s)
            heartbeat_s, called_at = self._timeouts.heartbeat_s, self._loop.time()
            try:
                async with asyncio.timeout(heartbeat_s):
                    await answer_of(self.actor.health.remote())
                self._last_answer_at = self._loop.time()
            except RayError as error:
                raise to_saga_error(error, where=self.name, info=self.info) from error
            except TimeoutError:
                if self._last_answer_at <= called_at:
                    raise DeadlineExceeded(f"no heartbeat for {heartbeat_s:g} s", where=self.name) from None

    def _heartbeat_ended(self, heartbeat: asyncio.Task[None]) -> None:
        if not heartbeat.cancelled() and (error := heartbeat.exception()) is not None:
            self._interrupt(error)


def _time_out(wanted: asyncio.Future[Any]) -> None:
    if not wanted.done():
        wanted.set_exception(TimeoutError())
