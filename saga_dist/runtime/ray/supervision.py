"""One supervised place for a worker: it starts, works, shows that it lives, fails, is replaced; no endless wait.

    GONE ──spawn──► STARTING ──► IDLE ──begin──► BUSY ──► IDLE
                        └──────── failed ──────────┘ ──► the pool decides: spawn again, or leave it GONE

What it waits for: the answer of ``start`` or of a lease, and, while up, of ``health``. Who unblocks it: the worker, or
the clock; too late, or silent when asked for its pulse, is a failure like a death.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from enum import Enum
from typing import Any

import ray
from ray.exceptions import RayError

from saga_dist.errors import DeadlineExceeded, SagaError
from saga_dist.runtime.ray.errors import WorkerInfo, to_saga_error

log = logging.getLogger(__name__)

FETCH_ANSWER_S = 60.0
"""Longest time to bring a finished answer here from another node."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Deadlines of a worker, seconds."""

    start_s: float
    lease_s: float
    heartbeat_s: float


class State(Enum):
    """What a worker is doing."""

    GONE = "gone"
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Answer:
    """A lease is done."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """A start or a lease came to nothing."""

    error: SagaError
    cause: BaseException | None = None
    while_starting: bool = False


class SupervisedWorker:
    """A named place whose actor may change.

    Args:
        name: for logs and errors.
        spawn: returns the handle of a new actor.
        clocks: its deadlines.
        missing: says what the cluster lacks, for the error of a start that takes too long.
        expect: told of every reference that is waited for.
    """

    def __init__(
        self,
        name: str,
        spawn: Callable[[], Any],
        clocks: Clocks,
        missing: Callable[[], str],
        expect: Callable[[ray.ObjectRef], None],
    ) -> None:
        self.name, self.state = name, State.GONE
        self.actor: Any = None
        self.info: WorkerInfo | None = None
        """Where it runs; None until it is up."""
        self.since = 0.0
        """When it came up, seconds since 1970."""
        self._spawn, self._clocks, self._missing, self._expect = spawn, clocks, missing, expect
        self._answer: ray.ObjectRef | None = None
        self._since = self._deadline = 0.0
        self._pulse: ray.ObjectRef | None = None
        self._pulse_at = 0.0
        """When to feel the pulse next; while feeling it, when silence means death."""

    @property
    def running(self) -> bool:
        """True when it is up."""
        return self.state in (State.IDLE, State.BUSY)

    def spawn(self) -> None:
        """Starts a new actor in this place, in the background."""
        self.actor, self.info, self._pulse = self._spawn(), None, None
        self._wait_for(State.STARTING, self.actor.start.remote(), self._clocks.start_s)

    def begin(self, answer: ray.ObjectRef) -> None:
        """Notes that the actor works on a lease that ends with ``answer``."""
        self._wait_for(State.BUSY, answer, self._clocks.lease_s)

    def rest(self) -> None:
        """Notes that it is up and has nothing to do."""
        self.state, self._answer, self._pulse = State.IDLE, None, None
        self._feel_later()

    def kill(self) -> None:
        """Ends the process, hung or not, and leaves the place empty."""
        if self.actor is not None:
            ray.kill(self.actor, no_restart=True)
        self.actor, self.info, self._answer, self._pulse = None, None, None, None
        self.state = State.GONE

    def references(self) -> list[ray.ObjectRef]:
        """Returns what this worker waits for."""
        return [ref for ref in (self._answer, self._pulse) if ref is not None]

    def next_deadline(self) -> float:
        """Returns the moment (monotonic clock) at which it must be looked at even without an answer."""
        deadline = float("inf") if self._answer is None else self._deadline
        return min(deadline, self._pulse_at) if self.running else deadline

    def look(self, ready: Set[ray.ObjectRef]) -> Answer | Failure | None:
        """Acts on what is ready and on the clock; returns what the pool has to know, None when that is nothing."""
        if self._answer is not None and self._answer in ready:
            return self._take_answer()
        if self._pulse is not None and self._pulse in ready:
            return self._take_pulse()
        now = time.monotonic()
        if self._answer is not None and now >= self._deadline:
            return self._too_late()
        if self.running and now >= self._pulse_at:
            if self._pulse is not None:
                silence = f"no sign of life for {self._clocks.heartbeat_s:g} s"
                return Failure(DeadlineExceeded(silence, where=self.name))
            self._pulse, self._pulse_at = self.actor.health.remote(), now + self._clocks.heartbeat_s
            self._expect(self._pulse)
        return None

    def _wait_for(self, state: State, answer: ray.ObjectRef, seconds: float) -> None:
        self.state, self._answer, self._since = state, answer, time.monotonic()
        self._deadline = self._since + seconds
        self._expect(answer)

    def _take_answer(self) -> Answer | Failure | None:
        starting = self.state is State.STARTING
        try:
            value = ray.get(self._answer, timeout=FETCH_ANSWER_S)
        except RayError as error:
            return Failure(to_saga_error(error, where=self.name, info=self.info), error, starting)
        took_s = time.monotonic() - self._since
        self.rest()
        if not starting:
            return Answer(value)
        self.info, self.since = value, time.time()
        log.info("%s is up after %.1f s (pid %d)", self.name, took_s, value.pid)
        return None

    def _take_pulse(self) -> Failure | None:
        try:
            ray.get(self._pulse, timeout=FETCH_ANSWER_S)
        except RayError as error:
            return Failure(to_saga_error(error, where=self.name, info=self.info), error)
        self._pulse = None
        self._feel_later()
        return None

    def _feel_later(self) -> None:
        """Asks half a heartbeat after the last sign of life: whoever hangs then is found out within two."""
        self._pulse_at = time.monotonic() + self._clocks.heartbeat_s / 2

    def _too_late(self) -> Failure:
        if self.state is State.BUSY:
            return Failure(DeadlineExceeded(f"no answer within {self._clocks.lease_s:g} s", where=self.name))
        what = f"not started within {self._clocks.start_s:g} s"
        return Failure(DeadlineExceeded(what, where=self.name, fix=self._missing()), while_starting=True)
