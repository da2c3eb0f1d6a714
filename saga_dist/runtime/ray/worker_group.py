"""The workers of a pool: starts, restarts (with backoff), scales, releases and readmits them.

A failed start does not affect other slots. While any worker of the pool is up, the start is retried without limit, with
growing pauses. The group ends with an error when no worker is up and every slot is hopeless: the slot has had no worker
for as long as a start may take, or, in a group that never had a worker, ``max_attempts`` of its starts failed. An error
that would be the same on every worker (``FATAL``) ends a group that never had a worker at the first start.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from bisect import insort
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, TypeVar

from ray.exceptions import RayActorError, RayError

from saga_dist.errors import DeadlineExceeded, SagaError, WorkerError
from saga_dist.runtime.ray.adapter import UP, ActorAdapter, PoolConfig, WorkerState, WorkerStatus, answer_of
from saga_dist.runtime.ray.errors import FATAL, WorkerInfo, to_saga_error
from saga_dist.runtime.ray.usage import Usage
from saga_dist.runtime.ray.worker_slot import Evicted, WorkerSlot

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
log = logging.getLogger(__name__)

MAX_BACKOFF_S = 60.0
"""Longest pause between two attempts to start a worker, seconds."""

_RANK = {
    WorkerState.GONE: 0,
    WorkerState.RELEASED: 0,
    WorkerState.STARTING: 1,
    WorkerState.IDLE: 2,
    WorkerState.BUSY: 3,
}
"""Rank of the states by which slots are chosen to leave: the lowest first."""

_by_seniority = attrgetter("seniority")


@dataclass(frozen=True, slots=True)
class ScaleRequest:
    """Number of workers that a pool should have."""

    target: int
    """Number of slots, without those that are leaving."""
    at_once: bool
    """True: workers that leave return their leases; False: they finish them first."""
    demand: int
    """Number of workers for which there is work: waiting tasks and leases."""


class WorkerGroup(Generic[TaskT, ResultT]):
    """All slots of one pool. Counts and lists over the slots are updated at every change of a slot's state.

    All methods but ``status`` must be called on the event loop of the pool.

    Args:
        adapter: creates, calls and kills the actors.
        config: settings of the pool.
        work: coroutine that runs leases on a worker that is up, until the worker is killed or released or the slot
            is leaving.
    """

    def __init__(
        self,
        adapter: ActorAdapter[TaskT, ResultT],
        config: PoolConfig,
        work: Callable[[WorkerSlot[TaskT, ResultT]], Awaitable[None]],
    ) -> None:
        self._adapter, self._config, self._work = adapter, config, work
        self.wakeup = asyncio.Event()
        """Event that is set when a worker becomes idle or is released, and by the pool when tasks or target change."""
        self.idle: list[WorkerSlot[TaskT, ResultT]] = []
        """Slots whose worker is idle, the oldest slot first."""
        self.fed: list[WorkerSlot[TaskT, ResultT]] = []
        """Slots whose worker is busy and is fed, the oldest slot first."""
        self.usage = Usage(time.monotonic(), config.tasks_per_lease)
        """Running and busy time of the workers."""
        self.num_replacements = 0
        """Number of failures of workers and of their starts so far."""
        self.num_drained = 0
        """Number of workers that were replaced so far because their node was about to be taken away."""
        self.num_up = 0
        """Number of workers that are idle or busy."""
        self._slots: list[WorkerSlot[TaskT, ResultT]] = []
        """All slots, leaving ones included, the oldest first."""
        self._num_staying = self._num_released = 0
        self._starting: set[WorkerSlot[TaskT, ResultT]] = set()
        """Slots whose worker is starting and has not failed to start before."""
        self._came_up = asyncio.Event()
        """Event that wakes all waiting coroutines when a worker comes up; it is cleared again at once."""
        self._ever_up = False
        self._demand = self._num_open_calls = 0
        self._seniority = itertools.count()

    # ------------------------------------------------------------------ called by the pool

    @property
    def num_coming(self) -> int:
        """Number of workers that are starting for the first time; tasks are kept for them."""
        return len(self._starting)

    def status(self) -> tuple[WorkerStatus, ...]:
        """Returns the status of every slot, the oldest first; may be called in any thread."""
        return tuple(slot.status() for slot in tuple(self._slots))

    async def call(self, method: str) -> Any:
        """Returns the result of ``method()`` on one running worker; if that worker dies, of another one.

        Raises:
            DeadlineExceeded: there was no answer within the deadlines of a start and a lease together.
            SagaError: the worker raised it.
        """
        deadline_s, dead = self._config.timeouts.start_s + self._config.timeouts.lease_s, set[WorkerInfo | None]()
        self._add_open_calls(1)
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    slot = await self._wait_for_worker(exclude=dead)
                    name, info = slot.name, slot.info
                    try:
                        return await answer_of(getattr(slot.actor, method).remote())
                    except RayError as error:
                        own = to_saga_error(error, where=name, info=info)
                        if not isinstance(error, RayActorError):
                            raise own from error
                        log.warning("%s; calling another worker", own)
                        dead.add(info)
        except TimeoutError:
            what = f"no worker answered {method} within {deadline_s:g} s"
            raise DeadlineExceeded(what, where=self._adapter.name) from None
        finally:
            self._add_open_calls(-1)

    # ------------------------------------------------------------------ scaling

    def reconcile(self, request: ScaleRequest) -> list[WorkerSlot[TaskT, ResultT]]:
        """Changes the number of slots to the target and readmits released slots for which there is work.

        Returns the new slots; the caller runs ``supervise`` for each of them.
        """
        self._demand = request.demand
        if request.at_once:
            for slot in self._slots:
                if slot.leaving:
                    slot.leave(at_once=True)
        if self._num_staying > request.target:
            self._shrink(request.target, at_once=request.at_once)
        new = self._grow(request.target) if self._num_staying < request.target else []
        while self._num_released and self._num_kept < self._num_needed:
            next(slot for slot in self._slots if slot.state is WorkerState.RELEASED).readmit()
        return new

    def vacate(self, node_ids: Collection[str]) -> None:
        """Replaces the workers on these nodes, idle ones now, busy ones after their lease.

        The last worker that gets tasks stays until another one does, so that a pool whose nodes all go works on.
        """
        serving = [slot for slot in self._slots if slot.info is not None and slot.serves]
        there = [slot for slot in serving if slot.info is not None and slot.info.node_id in node_ids]
        for slot in there[1:] if len(there) == len(serving) else there:
            log.info("%s is replaced, because its node is about to be taken away", slot.name)
            self.num_drained += 1
            slot.retire()

    @property
    def has_surplus(self) -> bool:
        """True when idle workers may be released and more workers are kept than needed."""
        return self._config.idle_release_s > 0 and self._num_kept > self._num_needed

    def evict_all(self) -> None:
        """Ends every slot at once."""
        for slot in self._slots:
            slot.leave(at_once=True)

    # ------------------------------------------------------------------ supervision of a slot

    async def supervise(self, slot: WorkerSlot[TaskT, ResultT]) -> None:
        """Starts a worker in a slot and runs leases on it, again after every failure, until the slot leaves.

        Raises:
            SagaError: no worker could be started, and all slots are hopeless.
        """
        try:
            while not slot.leaving:
                if slot.state is WorkerState.RELEASED:
                    await slot.until_readmitted()
                    continue
                try:
                    await slot.start()
                except SagaError as error:
                    await self._start_failed(slot, error)
                else:
                    await self._work(slot)
        except Evicted:
            pass
        finally:
            slot.kill()
            self._slots.remove(slot)
            await slot.until_ended()

    async def _start_failed(self, slot: WorkerSlot[TaskT, ResultT], error: SagaError) -> None:
        """Raises an error when every slot is hopeless; else releases the slot or pauses before the next attempt."""
        self.num_replacements += 1
        if not self._ever_up and isinstance(error, FATAL):
            raise error
        if not self.num_up and all(map(self._is_hopeless, self._slots)):
            what = f"no worker could be started, the last time: {error}"
            raise WorkerError(what, where=self._adapter.name) from error
        if self.has_surplus:
            slot.release()
            return
        pause_s = min(MAX_BACKOFF_S, 2.0 ** (slot.failed_starts - 1))
        log.warning("%s; trying again in %g s", error, pause_s)
        await slot.pause(pause_s)

    def _is_hopeless(self, slot: WorkerSlot[TaskT, ResultT]) -> bool:
        """Returns True when a slot without a worker is not expected to have one in time, or at all."""
        down_s = asyncio.get_running_loop().time() - slot.down_since
        failed_always = not self._ever_up and slot.failed_starts >= self._config.max_attempts
        needs_none = slot.leaving or slot.state is WorkerState.RELEASED
        return failed_always or down_s >= self._config.timeouts.start_s or needs_none

    # ------------------------------------------------------------------ internal

    async def _wait_for_worker(self, *, exclude: Collection[WorkerInfo | None]) -> WorkerSlot[TaskT, ResultT]:
        """Waits for a worker that is up and not in ``exclude``; returns its slot, preferably of an idle worker."""
        while True:
            up = [slot for slot in self._slots if slot.info is not None and slot.info not in exclude]
            if up:
                return min(up, key=lambda slot: slot.state is not WorkerState.IDLE)
            await self._came_up.wait()

    def _add_open_calls(self, number: int) -> None:
        """Counts calls of ``call`` in progress, for each of which a worker is needed."""
        self._num_open_calls += number
        self.wakeup.set()

    @property
    def _num_kept(self) -> int:
        """Number of slots that have a worker or will start one, without leaving slots."""
        return self._num_staying - self._num_released

    @property
    def _num_needed(self) -> int:
        """Number of workers for which there is work, at least ``min_workers``."""
        return max(self._demand + self._num_open_calls, self._config.min_workers)

    def _shrink(self, target: int, *, at_once: bool) -> None:
        """Makes slots leave, of equal states the youngest first: without a worker, starting, idle, then busy ones."""
        youngest_first = [slot for slot in reversed(self._slots) if not slot.leaving]
        in_order_of_leaving = sorted(youngest_first, key=lambda slot: _RANK[slot.state])
        for slot in in_order_of_leaving[: self._num_staying - target]:
            slot.leave(at_once=at_once)
        self._num_staying = target

    def _grow(self, target: int) -> list[WorkerSlot[TaskT, ResultT]]:
        """Keeps leaving slots that were not evicted, the oldest first, then adds new slots; returns the new slots."""
        leaving = [slot for slot in self._slots if slot.leaving and not slot.evicted]
        kept = leaving[: target - self._num_staying]
        for slot in kept:
            slot.leaving = False
        num_new = target - self._num_staying - len(kept)
        taken = {slot.name for slot in self._slots}
        names = (name for n in itertools.count() if (name := f"{self._adapter.name}-{n}") not in taken)
        new = [
            WorkerSlot(name, next(self._seniority), self._adapter, self._config.timeouts, self._note_change)
            for name in itertools.islice(names, num_new)
        ]
        self._slots += new
        self._num_staying = target
        return new

    def _note_change(self, slot: WorkerSlot[TaskT, ResultT], before: WorkerState) -> None:
        """Updates the counts and lists over all slots after a change of the state of one."""
        after = slot.state
        self.num_up += (after in UP) - (before in UP)
        self._num_released += (after is WorkerState.RELEASED) - (before is WorkerState.RELEASED)
        self.usage.note(time.monotonic(), slot.name, running=after in UP, busy=after is WorkerState.BUSY)
        self._starting.discard(slot)
        if after is WorkerState.STARTING and not slot.failed_starts:
            self._starting.add(slot)
        if before is WorkerState.IDLE:
            self.idle.remove(slot)
        if after is WorkerState.IDLE:
            insort(self.idle, slot, key=_by_seniority)
        if before is WorkerState.BUSY and slot in self.fed:
            self.fed.remove(slot)
        if after is WorkerState.BUSY and slot.is_fed:
            insort(self.fed, slot, key=_by_seniority)
        if before is WorkerState.STARTING and after is WorkerState.IDLE:
            self._ever_up = True
            self._came_up.set()
            self._came_up.clear()
        if after in (WorkerState.IDLE, WorkerState.RELEASED):
            self.wakeup.set()
