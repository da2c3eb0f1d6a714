"""The workers of a pool: started, restarted with backoff, scaled, released while nobody needs them.

A slot that cannot be filled blocks nobody and is never given up: it is tried again, later and later, while another
worker runs. Only when none runs, and none came up for as long as a start may take, there is nobody to wait for; and a
pool that has never had a worker ends after a few failed starts, for the next would fail as well.
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
from saga_dist.runtime.ray.adapter import ActorAdapter, PoolConfig, WorkerStatus, answer_of
from saga_dist.runtime.ray.errors import FATAL, WorkerInfo, to_saga_error
from saga_dist.runtime.ray.usage import Usage
from saga_dist.runtime.ray.worker_slot import UP, Evicted, WorkerSlot, WorkerState

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
log = logging.getLogger(__name__)

MAX_BACKOFF_S = 60.0
"""Longest pause between two attempts to start a worker."""

_USEFULNESS = {
    WorkerState.GONE: 0,
    WorkerState.RELEASED: 0,
    WorkerState.STARTING: 1,
    WorkerState.IDLE: 2,
    WorkerState.BUSY: 3,
}
"""The least useful workers leave first."""

_by_seniority = attrgetter("seniority")


@dataclass(frozen=True, slots=True)
class ScaleRequest:
    """How many workers a pool should have."""

    target: int
    """Slots that stay."""
    at_once: bool
    """True when those that leave must not finish their leases."""
    demand: int
    """Workers that would have something to do."""


class WorkerGroup(Generic[TaskT, ResultT]):
    """All slots of one pool. What depends on all of them is kept as they change, and never counted anew.

    Args:
        adapter: how to create and use the workers.
        config: of the pool.
        work: gives leases to a worker that is up, until it is killed, released or should leave.
    """

    def __init__(
        self,
        adapter: ActorAdapter[TaskT, ResultT],
        config: PoolConfig,
        work: Callable[[WorkerSlot[TaskT, ResultT]], Awaitable[None]],
    ) -> None:
        self._adapter, self._config, self._work = adapter, config, work
        self.wakeup = asyncio.Event()
        """Set whenever a worker has become idle or was released."""
        self.idle: list[WorkerSlot[TaskT, ResultT]] = []
        """Slots that can take a lease, the oldest first."""
        self.usage = Usage(time.monotonic())
        self.num_replacements = 0
        """Workers, started or not, that failed so far."""
        self.num_up = 0
        """Workers that are idle or busy."""
        self._slots: list[WorkerSlot[TaskT, ResultT]] = []
        """The oldest first, those that leave included."""
        self._num_staying = self._num_released = 0
        self._coming: set[WorkerSlot[TaskT, ResultT]] = set()
        """Slots whose worker starts, and did not fail to before."""
        self._came_up = asyncio.Event()
        """Set for a moment whenever a worker comes up."""
        self._ever_up = False
        self._demand = self._num_asking = 0
        self._seniority = itertools.count()

    # ------------------------------------------------------------------ what the pool asks

    @property
    def num_coming(self) -> int:
        """Workers that start for the first time: they will want their share of the work."""
        return len(self._coming)

    def status(self) -> tuple[WorkerStatus, ...]:
        """Returns the status of every slot, the oldest first; may be called from any thread."""
        return tuple(slot.status() for slot in tuple(self._slots))

    async def ask(self, method: str) -> Any:
        """Returns the answer of one running worker to ``method()``; of another when that one dies meanwhile.

        Raises:
            DeadlineExceeded: no answer within the time that a start and a lease may take together.
            SagaError: what the worker raised.
        """
        deadline_s, dead = self._config.timeouts.start_s + self._config.timeouts.lease_s, set[WorkerInfo | None]()
        self._change_asking(1)
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    slot = await self._worker_up(but_not=dead)
                    name, info = slot.name, slot.info
                    try:
                        return await answer_of(getattr(slot.actor, method).remote())
                    except RayError as error:
                        own = to_saga_error(error, where=name, info=info)
                        if not isinstance(error, RayActorError):
                            raise own from error
                        log.warning("%s; asking another worker", own)
                        dead.add(info)
        except TimeoutError:
            what = f"no worker answered {method} within {deadline_s:g} s"
            raise DeadlineExceeded(what, where=self._adapter.name) from None
        finally:
            self._change_asking(-1)

    # ------------------------------------------------------------------ how many

    def reconcile(self, request: ScaleRequest) -> list[WorkerSlot[TaskT, ResultT]]:
        """Brings the number of slots to the target, and released workers back when they are needed.

        Returns the slots that are new; each needs its ``supervise``.
        """
        self._demand = request.demand
        if request.at_once:
            for slot in self._slots:
                if slot.leaving:
                    slot.leave(at_once=True)
        if self._num_staying > request.target:
            self._shrink(request.target, at_once=request.at_once)
        new = self._grow(request.target) if self._num_staying < request.target else []
        while self._num_released and self._num_wanted < self._num_needed:
            next(slot for slot in self._slots if slot.state is WorkerState.RELEASED).readmit()
        return new

    @property
    def has_surplus(self) -> bool:
        """True when a worker that has nothing to do may be released."""
        return self._config.idle_release_s > 0 and self._num_wanted > self._num_needed

    def evict_all(self) -> None:
        """Ends every slot at once."""
        for slot in self._slots:
            slot.leave(at_once=True)

    # ------------------------------------------------------------------ the life of a slot

    async def supervise(self, slot: WorkerSlot[TaskT, ResultT]) -> None:
        """Starts workers in a slot, one after another, and lets each of them work; ends when the slot leaves.

        Raises:
            SagaError: no worker could be started, and there is none to wait for.
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

    async def _start_failed(self, slot: WorkerSlot[TaskT, ResultT], error: SagaError) -> None:
        """Ends the pool when there is nobody to wait for; pauses before the next attempt otherwise."""
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
        down_s = asyncio.get_running_loop().time() - slot.down_since
        never = not self._ever_up and slot.failed_starts >= self._config.max_attempts
        unwanted = slot.leaving or slot.state is WorkerState.RELEASED
        return never or down_s >= self._config.timeouts.start_s or unwanted

    # ------------------------------------------------------------------ inside

    async def _worker_up(self, *, but_not: Collection[WorkerInfo | None]) -> WorkerSlot[TaskT, ResultT]:
        """Waits for a worker that is up and not among ``but_not``; returns its slot, an idle one if there is one."""
        while True:
            up = [slot for slot in self._slots if slot.info is not None and slot.info not in but_not]
            if up:
                return min(up, key=lambda slot: slot.state is not WorkerState.IDLE)
            await self._came_up.wait()

    def _change_asking(self, number: int) -> None:
        self._num_asking += number
        self.wakeup.set()

    @property
    def _num_wanted(self) -> int:
        return self._num_staying - self._num_released

    @property
    def _num_needed(self) -> int:
        return max(self._demand + self._num_asking, self._config.min_workers)

    def _shrink(self, target: int, *, at_once: bool) -> None:
        """Lets the least useful slots leave: empty ones, then idle ones, then busy ones; the youngest first."""
        youngest_first = [slot for slot in reversed(self._slots) if not slot.leaving]
        least_useful_first = sorted(youngest_first, key=lambda slot: _USEFULNESS[slot.state])
        for slot in least_useful_first[: self._num_staying - target]:
            slot.leave(at_once=at_once)
        self._num_staying = target

    def _grow(self, target: int) -> list[WorkerSlot[TaskT, ResultT]]:
        """Keeps slots that were about to leave, the oldest first, and adds new ones; returns the new ones."""
        about_to_leave = [slot for slot in self._slots if slot.leaving and not slot.evicted]
        kept = about_to_leave[: target - self._num_staying]
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
        """Keeps what depends on the states of all slots up to date; called after each change of one."""
        after = slot.state
        self.num_up += (after in UP) - (before in UP)
        self._num_released += (after is WorkerState.RELEASED) - (before is WorkerState.RELEASED)
        self.usage.note(time.monotonic(), slot.name, running=after in UP, busy=after is WorkerState.BUSY)
        self._coming.discard(slot)
        if after is WorkerState.STARTING and not slot.failed_starts:
            self._coming.add(slot)
        if before is WorkerState.IDLE:
            self.idle.remove(slot)
        if after is WorkerState.IDLE:
            insort(self.idle, slot, key=_by_seniority)
        if before is WorkerState.STARTING and after is WorkerState.IDLE:
            self._ever_up = True
            self._came_up.set()
            self._came_up.clear()
        if after in (WorkerState.IDLE, WorkerState.RELEASED):
            self.wakeup.set()
