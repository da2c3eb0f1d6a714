"""The places of a pool's workers: filled, refilled with patience, added, drained, left empty while nobody needs them.

A place that cannot be filled blocks nobody and is never given up: it is tried again, later and later, while another
worker runs. Only when none runs, and none came up for as long as a start may take, there is nobody to wait for; and
a pool that has never had a worker ends after a few starts that came to nothing, for the next would as well.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any

import ray

from saga_dist.errors import WorkerError
from saga_dist.runtime.ray.errors import FATAL, WorkerInfo
from saga_dist.runtime.ray.supervision import Answer, Clocks, Failure, State, SupervisedWorker

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 60.0
"""Between two attempts to fill a place."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers of a pool."""

    workers: int
    tasks_per_lease: int
    """In-flight cap of one worker."""
    max_attempts: int
    """Failures per task before it is set aside; starts per place before a pool without any worker gives up."""
    clocks: Clocks
    max_quarantined: int = 8
    """Tasks that may be set aside before the run ends."""
    min_workers: int = 1
    """Workers that stay although they idle."""
    idle_release_s: float = 0.0
    """A worker that idled so long is ended until it is needed; 0: never."""


@dataclass(slots=True, eq=False)
class Place:
    """Room for one worker, oldest first in the crew."""

    worker: SupervisedWorker
    up_at: float
    """When it was last seen up, or was first wanted (monotonic clock)."""
    idle_since: float
    failed_starts: int = 0
    retry_at: float = 0.0
    leaving: bool = False
    """Ends with its lease."""
    released: bool = False
    """Empty because it was not needed."""

    @property
    def wanted(self) -> bool:
        """True when there should be a worker."""
        return not (self.leaving or self.released)


class Crew:
    """All places of one pool. One thread uses it.

    Args:
        name: of the role.
        spawn: returns the handle of a new actor.
        missing: says what the cluster lacks.
        limits: of the pool.
        expect: told of every reference that is waited for.
    """

    def __init__(
        self,
        name: str,
        spawn: Callable[[], Any],
        missing: Callable[[], str],
        limits: Limits,
        expect: Callable[[ray.ObjectRef], None],
    ) -> None:
        self._name, self._spawn, self._missing, self._limits, self._expect = name, spawn, missing, limits, expect
        self.places: list[Place] = []
        self._ever_up = False

    # ------------------------------------------------------------------ how many

    def resize(self, number: int, *, at_once: bool = False) -> list[SupervisedWorker]:
        """Adds places, or lets the least useful leave: empty ones, then idle ones, then busy ones; the youngest first.

        Args:
            number: of places that stay.
            at_once: a busy worker that leaves does not finish its lease.

        Returns the busy workers that must be ended now.
        """
        staying = [place for place in self.places if not place.leaving]
        for place in self.places:  # first those that are still here
            if place.leaving and len(staying) < number:
                place.leaving = False
                staying.append(place)
        while len(staying) < number:
            staying.append(self._new_place())
        usefulness = {State.GONE: 0, State.STARTING: 1, State.IDLE: 2, State.BUSY: 3}
        youngest_first = sorted(staying, key=self.places.index, reverse=True)
        leaving = sorted(youngest_first, key=lambda place: usefulness[place.worker.state])[: len(staying) - number]
        for place in leaving:
            place.leaving = True
        return [place.worker for place in leaving if at_once and place.worker.state is State.BUSY]

    def keep_up(self, demand: int) -> None:
        """Fills the places that are due; with ``idle_release_s`` empties those that nobody needs.

        Args:
            demand: workers that would have something to do.
        """
        now = time.monotonic()
        wanted, needed = [place for place in self.places if place.wanted], max(demand, self._limits.min_workers)
        if self._limits.idle_release_s:
            for place in reversed(wanted.copy()):
                if len(wanted) > needed and self._useless(place, now):
                    log.info("%s is released after %g s without work", place.worker.name, now - place.idle_since)
                    place.worker.kill()
                    place.released = True
                    wanted.remove(place)
            for place in self.places:
                if place.released and not place.leaving and len(wanted) < needed:
                    place.released, place.up_at, place.retry_at, place.failed_starts = False, now, now, 0
                    wanted.append(place)
        for place in wanted:
            if place.worker.state is State.GONE and now >= place.retry_at:
                place.worker.spawn()

    def settle(self) -> None:
        """Notes who is up and who idles, and ends those who may leave now."""
        now = time.monotonic()
        for place in self.places:
            if place.worker.running:
                self._ever_up = True
                place.up_at, place.failed_starts = now, 0
            if place.worker.state is not State.IDLE:
                place.idle_since = now
            if place.leaving and place.worker.state is not State.BUSY:
                place.worker.kill()
        self.places = [place for place in self.places if not place.leaving or place.worker.state is State.BUSY]

    # ------------------------------------------------------------------ work

    def idle(self) -> dict[str, SupervisedWorker]:
        """Returns the workers that can take a lease, by name."""
        return {
            place.worker.name: place.worker
            for place in self.places
            if place.worker.state is State.IDLE and not place.leaving
        }

    @property
    def num_coming(self) -> int:
        """Workers that start for the first time: they will want their share of the work."""
        return sum(place.worker.state is State.STARTING and not place.failed_starts for place in self.places)

    def named(self, *states: State) -> tuple[str, ...]:
        """Returns the names of the workers in one of the states."""
        return tuple(place.worker.name for place in self.places if place.worker.state in states)

    def infos(self) -> dict[str, WorkerInfo]:
        """Returns where each running worker lives, by name."""
        workers = [place.worker for place in self.places]
        return {worker.name: worker.info for worker in workers if worker.info is not None}

    def references(self) -> list[ray.ObjectRef]:
        """Returns everything that is waited for."""
        return [ref for place in self.places for ref in place.worker.references()]

    def next_deadline(self) -> float:
        """Returns the moment (monotonic clock) at which somebody must be looked at even without an answer."""
        return min((place.worker.next_deadline() for place in self.places), default=float("inf"))

    def look(self, ready: Set[ray.ObjectRef]) -> Iterator[tuple[SupervisedWorker, Answer | Failure]]:
        """Yields what happened, worker by worker."""
        for place in self.places:
            event = place.worker.look(ready)
            if event is not None:
                yield place.worker, event

    # ------------------------------------------------------------------ starts that fail

    def start_failed(self, worker: SupervisedWorker, failure: Failure) -> None:
        """Empties the place of a worker that did not come up and notes when to try again.

        Raises:
            SagaError: there is nobody to wait for.
        """
        worker.kill()
        now, place = time.monotonic(), next(place for place in self.places if place.worker is worker)
        place.failed_starts += 1
        pause_s = min(LONGEST_PAUSE_S, 2.0 ** (place.failed_starts - 1))
        place.retry_at = now + pause_s
        if not self._ever_up and isinstance(failure.error, FATAL):
            raise failure.error from failure.cause
        if not self.named(State.IDLE, State.BUSY) and all(map(self._hopeless, self.places)):
            what = f"no worker could be started, the last time: {failure.error}"
            raise WorkerError(what, where=self._name) from failure.cause
        log.warning("%s; trying again in %g s", failure.error, pause_s)

    def close(self) -> None:
        """Ends every worker."""
        for place in self.places:
            place.worker.kill()
        self.places = []

    def _hopeless(self, place: Place) -> bool:
        down_s = time.monotonic() - place.up_at
        never = not self._ever_up and place.failed_starts >= self._limits.max_attempts
        return never or down_s >= self._limits.clocks.start_s or not place.wanted

    def _useless(self, place: Place, now: float) -> bool:
        if place.worker.state is State.IDLE:
            return now - place.idle_since >= self._limits.idle_release_s
        return place.worker.state is State.GONE and place.failed_starts > 0

    def _new_place(self) -> Place:
        taken, now = {place.worker.name for place in self.places}, time.monotonic()
        numbers = range(len(taken) + 1)
        name = next(name for name in (f"{self._name}-{number}" for number in numbers) if name not in taken)
        worker = SupervisedWorker(name, self._spawn, self._limits.clocks, self._missing, self._expect)
        place = Place(worker, up_at=now, idle_since=now)
        self.places.append(place)
        return place
