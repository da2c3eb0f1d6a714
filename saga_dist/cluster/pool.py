"""A pool of worker actors: leases, retries elsewhere, replacement, deduplication by pair id.

``collect`` turns the whole machine in the caller's thread; there is no other. All waiting is done by supervised
workers, whose every wait has a deadline, and every failure costs one of a bounded number of attempts: hence ``collect``
always ends, with a result or with an error.

Who is guilty when a worker dies on a lease of many groups? Each of them is tried again alone: the innocent succeed, and
with the default of three attempts a group that also fails alone on two workers is reported by its pair id.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import RayError

from saga_dist.cluster.failures import FATAL, WorkerInfo, own_error
from saga_dist.cluster.supervision import FETCH_ANSWER_S, Clocks, Failure, State, SupervisedWorker
from saga_dist.errors import SagaError, WorkerError

TaskT = TypeVar("TaskT")
RoleTaskT = TypeVar("RoleTaskT", contravariant=True)
ResultT = TypeVar("ResultT")
log = logging.getLogger(__name__)

_SLICE_S = 1.0


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
class Limits:
    """Numbers of a pool."""

    workers: int
    tasks_per_lease: int
    """In-flight cap of one worker."""
    max_attempts: int
    """Tries per task, and per worker that does not start."""
    clocks: Clocks


@dataclass(frozen=True, slots=True)
class _Lease:
    keys: tuple[str, ...]
    answer: ray.ObjectRef
    payloads: Sequence[ray.ObjectRef]
    forgotten: bool = False
    """True when nobody wants its results any more; the same pairs may have been submitted anew."""


@dataclass(slots=True)
class _Entry(Generic[TaskT]):
    task: TaskT
    attempts: int = 0


@dataclass(slots=True)
class _Counters:
    leases: int = 0
    retries: int = 0
    replacements: int = 0
    duplicates: int = 0
    busy_s: dict[str, float] = field(default_factory=dict)


class RayPool(Generic[TaskT, ResultT]):
    """N actors of one role behind one queue; implements ``protocols.WorkerPool``.

    Args:
        role: how to spawn and talk to its workers.
        limits: how many, how much at once, how long, how often.
    """

    def __init__(self, role: Role[TaskT, ResultT], limits: Limits) -> None:
        self._role, self._limits = role, limits
        self._workers = [
            SupervisedWorker(f"{role.name}-{index}", role.spawn, limits.clocks, role.missing)
            for index in range(limits.workers)
        ]
        self._failed_starts = dict.fromkeys((worker.name for worker in self._workers), 0)
        self._entries: dict[str, _Entry[TaskT]] = {}
        """Every task that is pending and not yet done, by pair id."""
        self._fresh: deque[str] = deque()
        self._suspects: deque[str] = deque()
        """Tasks that were on a lease that failed; leased alone from now on."""
        self._leases: dict[str, _Lease] = {}
        """By worker."""
        self._abandoned: dict[ray.ObjectRef, int] = {}
        """Answers of given-up leases, with their number of tasks."""
        self._done: list[ResultT] = []
        self._counters = _Counters()
        self._started = False

    # ------------------------------------------------------------------ what the coordinator sees

    def start(self) -> None:
        """Spawns the workers in the background; ``submit`` does it otherwise."""
        if not self._started:
            self._started = True
            for worker in self._workers:
                worker.spawn()

    def submit(self, tasks: Sequence[TaskT]) -> None:
        """Queues tasks; returns at once. A task whose pair is already pending is dropped and counted."""
        self.start()
        for task in tasks:
            key = self._role.task_key(task)
            if key in self._entries:
                self._counters.duplicates += 1
                continue
            self._entries[key] = _Entry(task)
            self._fresh.append(key)
        self._dispatch()

    def collect(self) -> list[ResultT]:
        """Returns at least one finished result, or an empty list when nothing is pending.

        Raises:
            UserError: a worker found a mistake that every other worker would find too.
            WorkerError: a task failed on every allowed attempt, or no worker could be brought up in time. Such a task
                is no longer pending; the others are.
        """
        while not self._done and self._entries:
            self._turn()
        done, self._done = self._done, []
        return done

    @property
    def num_pending(self) -> int:
        """Tasks submitted and not yet collected."""
        return len(self._entries) + len(self._done)

    def workers(self) -> dict[str, WorkerInfo]:
        """Returns where each running worker lives, by name."""
        return {worker.name: worker.info for worker in self._workers if worker.info is not None}

    def ask(self, method: str) -> Any:
        """Returns the answer of one running worker to ``method()``; waits for a worker to be up if need be."""
        self.start()
        while not any(worker.running for worker in self._workers):
            self._turn()
        worker = min(self._workers, key=lambda worker: worker.state is not State.IDLE)
        try:
            return ray.get(getattr(worker.actor, method).remote(), timeout=self._limits.clocks.lease_s)
        except RayError as error:
            raise own_error(error, where=worker.name, info=worker.info) from error

    def metrics(self) -> dict[str, float]:
        """Returns counters since the last call, named ``pool/...``."""
        counters, self._counters = self._counters, _Counters()
        return {
            "pool/leases": float(counters.leases),
            "pool/retries": float(counters.retries),
            "pool/replacements": float(counters.replacements),
            "pool/duplicates": float(counters.duplicates),
            "pool/busy_s": sum(counters.busy_s.values()),
            "pool/busy_max_s": max(counters.busy_s.values(), default=0.0),
            "pool/workers": float(sum(worker.running for worker in self._workers)),
        }

    def forget(self) -> None:
        """Drops every task and every result; a worker finishes its lease, whose answer is ignored."""
        for store in (self._entries, self._fresh, self._suspects, self._done):
            store.clear()
        self._leases = {name: replace(lease, forgotten=True) for name, lease in self._leases.items()}

    def close(self) -> None:
        """Ends every worker and forgets all tasks."""
        for worker in self._workers:
            worker.kill()
        for store in (self._entries, self._fresh, self._suspects, self._leases, self._abandoned, self._done):
            store.clear()

    # ------------------------------------------------------------------ one turn of the machine

    def _turn(self) -> None:
        """Hands out work, waits for the next answer or deadline, acts on it."""
        self._dispatch()
        ready = self._wait()
        for ref in ready & self._abandoned.keys():
            self._drop_late(ref)
        for worker in self._workers:
            match worker.look(ready):
                case Failure() as failure:
                    self._fail(worker, failure)
                case None:
                    pass
                case answer:
                    self._accept(worker, answer.value, answer.busy_s)
        if all(worker.state is State.GONE for worker in self._workers):
            raise WorkerError("no worker is left", where=self._role.name, fix="the log says why each of them ended")

    def _wait(self) -> set[ray.ObjectRef]:
        refs = [ref for worker in self._workers for ref in worker.references()] + list(self._abandoned)
        if not refs:
            return set()
        patience_s = min(worker.next_deadline() for worker in self._workers) - time.monotonic()
        ray.wait(refs, num_returns=1, timeout=min(_SLICE_S, max(0.0, patience_s)))
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return set(ready)

    def _dispatch(self) -> None:
        """Gives every idle worker its share: a suspect alone, or an even part of the fresh tasks."""
        idle = [worker for worker in self._workers if worker.state is State.IDLE]
        while idle and self._suspects:
            self._lease(idle.pop(0), (self._suspects.popleft(),))
        if not idle or not self._fresh:
            return
        # Workers about to start count as takers, or the first one up would take everything.
        takers = len(idle) + sum(worker.state is State.STARTING for worker in self._workers)
        share = min(self._limits.tasks_per_lease, -(-len(self._fresh) // takers))
        for worker in idle:
            keys = tuple(self._fresh.popleft() for _ in range(min(share, len(self._fresh))))
            if keys:
                self._lease(worker, keys)

    def _lease(self, worker: SupervisedWorker, keys: tuple[str, ...]) -> None:
        answer, payloads = self._role.send(worker.actor, [self._entries[key].task for key in keys])
        worker.begin(answer)
        self._leases[worker.name] = _Lease(keys, answer, payloads)
        self._counters.leases += 1
        self._counters.retries += sum(self._entries[key].attempts > 0 for key in keys)

    def _accept(self, worker: SupervisedWorker, answer: Any, busy_s: float) -> None:
        """Takes the results of a lease, all or none."""
        self._counters.busy_s[worker.name] = self._counters.busy_s.get(worker.name, 0.0) + busy_s
        lease = self._leases[worker.name]
        if lease.forgotten:
            del self._leases[worker.name]
            self._counters.duplicates += len(lease.keys)
            return
        try:
            results = self._role.receive(answer, lease.payloads)
            keys = [self._role.result_key(result) for result in results]
            if sorted(keys) != sorted(lease.keys):
                strange = (sorted(set(keys) ^ set(lease.keys)) or keys)[0]
                raise WorkerError(f"{len(keys)} results for {len(lease.keys)} tasks, the first that differs: {strange}")
        except SagaError as error:  # an answer that cannot be read is a failure like any other
            self._fail(worker, Failure(WorkerError(f"a wrong answer: {error}", where=worker.name), error))
            return
        del self._leases[worker.name]
        for key in lease.keys:
            del self._entries[key]
        self._done.extend(results)

    def _drop_late(self, ref: ray.ObjectRef) -> None:
        """Drops the answer of a worker that was given up: its groups have been, or will be, done elsewhere."""
        num_tasks = self._abandoned.pop(ref)
        try:
            ray.get(ref, timeout=FETCH_ANSWER_S)
        except RayError:
            return  # the usual end of a worker that was killed
        self._counters.duplicates += num_tasks
        log.warning("%s: a late answer with %d groups was dropped", self._role.name, num_tasks)

    # ------------------------------------------------------------------ failures

    def _fail(self, worker: SupervisedWorker, failure: Failure) -> None:
        """Decides what a failure means: the end, a replacement and another attempt, or a group to report."""
        lease = self._leases.pop(worker.name, None)
        keys = lease.keys if lease and not lease.forgotten else ()
        if isinstance(failure.error, FATAL):
            self._forget(keys)
            if failure.while_starting:
                worker.kill()
            else:
                worker.rest()  # it refused its task and is as good as before
            raise failure.error from failure.cause
        if lease and worker.references():
            self._abandoned[lease.answer] = len(keys)
        worker.kill()
        self._failed_starts[worker.name] = self._failed_starts[worker.name] + 1 if failure.while_starting else 0
        if self._failed_starts[worker.name] >= self._limits.max_attempts:
            self._give_up(worker, failure)
            return
        log.warning("%s; replacing it%s", failure.error, f", {len(keys)} groups go elsewhere" if keys else "")
        self._counters.replacements += 1
        worker.spawn()
        for key in keys:
            self._entries[key].attempts += 1
        lost = [key for key in keys if self._entries[key].attempts >= self._limits.max_attempts]
        self._suspects.extend(key for key in keys if key not in lost)
        if lost:
            attempts, more = self._entries[lost[0]].attempts, f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            self._forget(lost)
            what = f"failed on {attempts} workers, the last time: {failure.error}"
            raise WorkerError(what, where=f"pair {lost[0]}{more}") from failure.cause

    def _give_up(self, worker: SupervisedWorker, failure: Failure) -> None:
        log.warning("%s; given up after %d starts", failure.error, self._failed_starts[worker.name])
        if all(other.state is State.GONE for other in self._workers):
            what = f"no worker could be started, the last time: {failure.error}"
            raise WorkerError(what, where=self._role.name) from failure.cause

    def _forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            del self._entries[key]
