"""The pump of a pool: one thread that does everything that touches workers.

    orders ──► fill places ──► hand out ──► wait ──► look ──► accept | fail ──┐
      ▲                              (an answer, a knock, or a deadline)      │
      └───────────────────────────────────────────────────────────────────────┘

It never waits longer than a second; what it waits for are supervised workers, each of whose waits has a deadline.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import RayError

from saga_dist.errors import SagaError, WorkerError
from saga_dist.runtime.ray.crew import Crew, Limits
from saga_dist.runtime.ray.desk import Desk, Seen
from saga_dist.runtime.ray.errors import FATAL
from saga_dist.runtime.ray.supervision import FETCH_ANSWER_S, Answer, Failure, State, SupervisedWorker

TaskT = TypeVar("TaskT")
RoleTaskT = TypeVar("RoleTaskT", contravariant=True)
ResultT = TypeVar("ResultT")
log = logging.getLogger(__name__)

_SLICE_S = 1.0
"""Longest wait between two looks at clocks and orders."""


class Role(Protocol[RoleTaskT, ResultT]):
    """What the pool needs to know about one kind of worker."""

    name: str

    def spawn(self) -> Any:
        """Returns the handle of a new actor with ``start`` and ``health``."""

    def send(self, actor: Any, tasks: Sequence[RoleTaskT]) -> tuple[ray.ObjectRef, Sequence[ray.ObjectRef]]:
        """Starts the work on a lease; returns the reference to wait for, and references to payloads."""

    def receive(self, answer: Any, payloads: Sequence[ray.ObjectRef]) -> list[ResultT]:
        """Returns the results in an answer."""

    def task_key(self, task: RoleTaskT) -> str:
        """Returns the pair id of a task."""

    def result_key(self, result: ResultT) -> str:
        """Returns the pair id of a result."""

    def missing(self) -> str:
        """Returns what the cluster lacks to start the configured workers ('' when nothing)."""


@dataclass(frozen=True, slots=True)
class _Sent:
    answer: ray.ObjectRef
    payloads: Sequence[ray.ObjectRef]


class Pump(Generic[TaskT, ResultT]):
    """Workers of one role, served from a desk.

    Args:
        role: how to spawn and talk to its workers.
        limits: how many, how much at once, how long, how often.
        desk: where tasks come from and results go.
    """

    def __init__(self, role: Role[TaskT, ResultT], limits: Limits, desk: Desk[TaskT, ResultT]) -> None:
        self._role, self._most, self._desk = role, limits.tasks_per_lease, desk
        self._crew = Crew(role.name, role.spawn, role.missing, limits, self._expect)
        self._sent: dict[str, _Sent] = {}
        """By worker."""
        self._abandoned: dict[ray.ObjectRef, int] = {}
        """Answers of given-up leases, with their number of tasks."""
        self._thread = threading.Thread(target=self._run, name=f"{role.name} pool", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def join(self, *, deadline_s: float) -> None:
        """Waits for the thread to end after the desk was closed."""
        self._thread.join(deadline_s)
        if self._thread.is_alive():
            log.error("%s: the pool's thread did not end within %g s", self._role.name, deadline_s)

    def _run(self) -> None:
        with ExitStack() as ending:
            ending.push(self._end)
            ending.callback(self._crew.close)
            while not self._desk.closed:
                self._turn()

    def _end(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        """Hands an error over to the callers: this thread has nobody to raise it to."""
        self._desk.end(error)
        return True

    # ------------------------------------------------------------------ one turn

    def _turn(self) -> None:
        """Sees to the places, hands out work, waits for the next answer, knock or deadline, acts on it."""
        orders = self._desk.orders()
        for worker in self._crew.resize(orders.target, at_once=orders.at_once):
            self._call_off(worker)
        self._crew.keep_up(orders.demand)
        self._hand_out()
        self._show()
        ready = self._wait()
        for ref in ready & self._abandoned.keys():
            self._drop_late(ref)
        for worker, event in self._crew.look(ready):
            match event:
                case Answer():
                    self._accept(worker, event.value)
                case Failure():
                    self._fail(worker, event)
        self._crew.settle()

    def _hand_out(self) -> None:
        idle = self._crew.idle()
        leases = self._desk.hand_out(list(idle), num_coming=self._crew.num_coming, most=self._most)
        for name, tasks in leases.items():
            self._sent[name] = _Sent(*self._role.send(idle[name].actor, tasks))
            idle[name].begin(self._sent[name].answer)

    def _show(self) -> None:
        seen = []
        for place in self._crew.places:
            worker = place.worker
            state = "leaving" if place.leaving else "released" if place.released else worker.state.value
            seen.append(Seen(worker.name, state, worker.info, worker.since, worker.actor))
        busy = self._crew.named(State.BUSY)
        self._desk.show(seen, running=self._crew.named(State.IDLE) + busy, busy=busy)

    def _wait(self) -> set[ray.ObjectRef]:
        patience_s = self._crew.next_deadline() - time.monotonic()
        self._desk.knock.wait(min(_SLICE_S, max(0.0, patience_s)))
        self._desk.knock.clear()
        refs = self._crew.references() + list(self._abandoned)
        return set(ray.wait(refs, num_returns=len(refs), timeout=0)[0]) if refs else set()

    def _expect(self, ref: ray.ObjectRef) -> None:
        """An answer knocks like a caller, so that the thread waits for both at once."""
        ref.future().add_done_callback(lambda _: self._desk.knock.set())

    def _accept(self, worker: SupervisedWorker, answer: Any) -> None:
        """Takes the results of a lease, all or none."""
        sent, expected = self._sent.pop(worker.name), self._desk.on_lease(worker.name)
        try:
            results = self._role.receive(answer, sent.payloads) if expected else []
            keys = [self._role.result_key(result) for result in results]
            if sorted(keys) != sorted(expected):
                strange = (sorted(set(keys) ^ set(expected)) or keys)[0]
                raise WorkerError(f"{len(keys)} results for {len(expected)} tasks, the first that differs: {strange}")
        except SagaError as error:  # an answer that cannot be read is a failure like any other
            self._fail(worker, Failure(WorkerError(f"a wrong answer: {error}", where=worker.name), error))
            return
        self._desk.deliver(worker.name, results)

    def _drop_late(self, ref: ray.ObjectRef) -> None:
        """Drops the answer of a worker that was given up: its groups have been, or will be, done elsewhere."""
        num_tasks = self._abandoned.pop(ref)
        try:
            ray.get(ref, timeout=FETCH_ANSWER_S)
        except RayError:
            return  # the usual end of a worker that was killed
        self._desk.count_late(num_tasks)
        log.warning("%s: a late answer with %d groups was dropped", self._role.name, num_tasks)

    # ------------------------------------------------------------------ failures

    def _fail(self, worker: SupervisedWorker, failure: Failure) -> None:
        """Decides what a failure means: the end, a replacement and another attempt, or a group to set aside."""
        if failure.while_starting:
            self._desk.count_replacement()
            self._crew.start_failed(worker, failure)
            return
        if isinstance(failure.error, FATAL):
            self._sent.pop(worker.name, None)
            worker.rest()  # it refused its task and is as good as before
            failure.error.__cause__ = failure.cause
            self._desk.refuse(worker.name, failure.error)
            return
        num_tasks = self._abandon(worker)
        worker.kill()
        self._desk.count_replacement()
        lost = self._desk.fail(worker.name, str(failure.error))
        again = num_tasks - len(lost)
        log.warning("%s; replacing it%s", failure.error, f", {again} groups go elsewhere" if again else "")
        for group in lost:
            log.warning("pair %s is set aside after %d workers failed on it", group.pair_id, group.attempts)

    def _call_off(self, worker: SupervisedWorker) -> None:
        """Ends a worker in the middle of its lease, which is nobody's fault."""
        self._abandon(worker)
        worker.kill()
        self._desk.give_back(worker.name)

    def _abandon(self, worker: SupervisedWorker) -> int:
        """Notes that a worker's answer may come late; returns the number of tasks it was working on."""
        num_tasks, sent = len(self._desk.on_lease(worker.name)), self._sent.pop(worker.name, None)
        if sent is not None and sent.answer in worker.references():
            self._abandoned[sent.answer] = num_tasks
        return num_tasks
