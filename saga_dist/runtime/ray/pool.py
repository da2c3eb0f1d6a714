"""A pool of worker actors: leases, retries on other workers, replacement of workers, deduplication by pair id.

One thread runs one event loop, with one coroutine that dispatches leases and one coroutine per worker slot:

    caller    submit ──► queue ─────────────┐                      ┌──► results ──► collect, poll
                                            ▼                      │
    loop      wakeup ──► _serve: scale, dispatch ──► slot: run a lease ──► finish | fail ──► wakeup
                                            ▲                      │
                                            └── if it is fed ──────┘

A lease is the set of tasks that a worker has. Most workers answer a lease as a whole. A worker that is fed answers when
any of its tasks is finished, and waiting tasks are added to its lease, so that it has ``tasks_per_lease`` of them while
tasks wait. When its lease changes in between, it is interrupted, which makes it answer soon and get the new lease.

Every wait ends:

- A caller in ``collect`` waits for a result; the loop, ``forget`` and ``close`` wake it.
- ``_serve`` waits for the event ``wakeup``, which callers and slots set.
- A slot waits for its worker; the worker's answer, the deadline, a missed heartbeat or an eviction ends the wait
  (``worker_slot``).

Therefore every lease ends. A failed lease costs each of its tasks one of a bounded number of attempts, after which the
result of the task is ``Quarantined``. A pool that cannot start any worker ends with an error after the start deadline
(``worker_group``). When the loop ends for any reason, callers are woken and get its error.

Queue, results and errors are shared between threads (``pool_state``); only the loop uses all other state.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from saga_dist.errors import SagaError, WorkerError
from saga_dist.runtime.ray.adapter import ActorAdapter, PoolConfig, WorkerState, WorkerStatus
from saga_dist.runtime.ray.errors import FATAL, WorkerInfo
from saga_dist.runtime.ray.pool_state import PoolState
from saga_dist.runtime.ray.worker_group import ScaleRequest, WorkerGroup
from saga_dist.runtime.ray.worker_slot import Evicted, WorkerSlot
from saga_dist.types import Quarantined
from saga_dist.workers.work_queue import WorkQueue

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
log = logging.getLogger(__name__)

CLOSE_S = 90.0
"""Longest time that ``close`` waits for the end of the loop, which ends all workers first, seconds."""
SLACK_S = 10.0
"""Time that ``call`` waits beyond the deadline of its coroutine, whose error says more, seconds."""
_SLICE_S = 1.0
"""Longest time between two checks of a waiting caller, seconds."""


class RayPool(Generic[TaskT, ResultT]):
    """A pool of actors of one role behind one queue; implements ``protocols.WorkerPool``.

    Args:
        adapter: creates, calls and kills the actors.
        config: settings of the pool.
        check_stop: called while a caller waits; may raise an exception to end the wait.
    """

    def __init__(
        self,
        adapter: ActorAdapter[TaskT, ResultT],
        config: PoolConfig,
        *,
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._adapter, self._config, self._check_stop = adapter, config, check_stop
        self._group = WorkerGroup(adapter, config, self._work)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._state = PoolState[TaskT, ResultT](
            WorkQueue(max_attempts=config.max_attempts, max_quarantined=config.max_quarantined), adapter.result_key
        )
        self._lock = self._state.lock
        self._target, self._at_once = config.workers, False
        self._vacated: frozenset[str] = frozenset()
        """Ids of nodes whose workers are replaced."""
        self._reported = {"replacements": 0, "drained": 0}
        """Counts of the group at the last call of ``metrics``."""

    # ------------------------------------------------------------------ tasks and results

    def start(self) -> None:
        """Starts the workers in the background; ``submit`` and ``call`` call it too."""
        with self._lock:
            if self._state.closed:
                raise WorkerError("the pool is closed", where=self._adapter.name)
            if self._thread is None:
                self._loop, name = asyncio.new_event_loop(), f"{self._adapter.name} pool"
                self._thread = threading.Thread(target=self._run, args=(self._loop,), name=name, daemon=True)
                self._thread.start()

    def submit(self, tasks: Sequence[TaskT]) -> None:
        """Queues tasks; does not wait for them. A task whose pair id is already pending is dropped and counted.

        Raises the errors of ``collect``.
        """
        self.start()
        with self._lock:
            self._state.raise_error()
            for task in tasks:
                self._state.queue.add(self._adapter.task_key(task), task)
        self._wake()

    def collect(self) -> list[ResultT | Quarantined]:
        """Returns at least one finished result, or an empty list when nothing is pending.

        The result of a task on which ``max_attempts`` workers failed is ``Quarantined``.

        Raises:
            UserError: a worker found a mistake of the user, which would fail on every other worker too. The tasks of
                that lease are no longer pending; other tasks are.
            WorkerError: too many tasks were quarantined, or no worker could be started in time. The pool has ended.
        """
        with self._lock:
            while not (results := self._state.take_results()) and len(self._state.queue):
                self._check_stop()
                self._lock.wait(_SLICE_S)
            return results

    def poll(self) -> list[ResultT | Quarantined]:
        """Returns the finished results, an empty list when there are none; does not wait.

        Raises the errors of ``collect``.
        """
        return self._state.take_results()

    @property
    def num_pending(self) -> int:
        """Number of tasks that were submitted and whose results were not collected."""
        return self._state.num_pending

    @property
    def runs_in_background(self) -> bool:
        """True, because workers are other processes."""
        return True

    def metrics(self) -> dict[str, float]:
        """Returns the counts and durations since the last call, by name."""
        with self._lock:
            counts = self._state.queue.take_counts()
            totals = {"replacements": self._group.num_replacements, "drained": self._group.num_drained}
            counts |= {name: total - self._reported[name] for name, total in totals.items()}
            self._reported = totals
        numbers = {name: float(number) for name, number in counts.items()}
        return {**numbers, "workers": float(self._group.num_up), **self._group.usage.take(time.monotonic())}

    def cancel(self, pair_ids: Collection[str]) -> None:
        """Drops the tasks of these pairs that are pending, and their uncollected results; ignores other ids.

        Workers that are fed abort those that are in flight.
        """
        self._state.cancel(pair_ids)
        self._wake()

    def forget(self) -> None:
        """Drops all pending tasks and all uncollected results and errors; answers that arrive later are ignored."""
        self._state.forget()
        self._wake()

    def close(self) -> None:
        """Ends the loop and all workers and drops all tasks; a second call does nothing more."""
        self._state.close()
        self._wake()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                log.error("%s: the pool's event loop did not end within %g s", self._adapter.name, CLOSE_S)

    # ------------------------------------------------------------------ workers

    def resize(self, number: int, *, at_once: bool = False) -> None:
        """Changes the target number of workers; does not wait for it, and workers go on meanwhile.

        Args:
            number: number of workers, at least 1.
            at_once: True: workers that leave return their leases; False: they finish them first.
        """
        assert number >= 1, f"a pool of {number} workers; expected at least 1"
        with self._lock:
            self._target, self._at_once = number, at_once
        self._wake()

    def vacate(self, node_ids: Collection[str]) -> None:
        """Gives no more tasks to the workers on these nodes and replaces them; does not wait for it.

        Idle workers end at once, busy ones after their lease, and the last one of the pool when another one is up. If
        the node goes first, the tasks of the lease are leased again without counting an attempt.

        Args:
            node_ids: Ray's ids of the nodes, which no later node has.
        """
        self._vacated |= frozenset(node_ids)
        self._wake()

    @property
    def target(self) -> int:
        """Number of workers that the pool should have."""
        return self._target

    def status(self) -> tuple[WorkerStatus, ...]:
        """Returns the status of every slot, the oldest slot first."""
        return self._group.status()

    def workers(self) -> dict[str, WorkerInfo]:
        """Returns node and process of each running worker, by name."""
        return {status.name: status.info for status in self.status() if status.info is not None}

    def call(self, method: str) -> Any:
        """Returns the result of ``method()`` on one running worker; if that worker dies, of another one.

        Waits for a worker when none runs, no longer than the deadlines of a start and a lease together.

        Args:
            method: name of a method of the actor that takes no arguments.

        Raises:
            DeadlineExceeded: there was no answer in time.
            SagaError: the worker raised it, or the pool has ended.
        """
        self.start()
        with self._lock:
            self._state.raise_error()
            assert self._loop is not None
            answer = asyncio.run_coroutine_threadsafe(self._group.call(method), self._loop)
        try:
            return self._wait_for_answer(answer)
        except (concurrent.futures.CancelledError, TimeoutError):
            self._state.raise_error()
            raise WorkerError("the pool was closed", where=self._adapter.name) from None
        finally:
            answer.cancel()  # an interrupt may have ended the wait

    # ------------------------------------------------------------------ internal, called in any thread

    def _wait_for_answer(self, answer: concurrent.futures.Future[Any]) -> Any:
        """Returns the result of a coroutine of the loop; raises ``TimeoutError`` when it exceeds its own deadline."""
        timeouts = self._config.timeouts
        deadline = time.monotonic() + timeouts.start_s + timeouts.lease_s + SLACK_S
        while time.monotonic() < deadline:
            self._check_stop()
            if concurrent.futures.wait([answer], timeout=_SLICE_S).done:
                return answer.result()
        raise TimeoutError

    def _wake(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._group.wakeup.set)

    # ------------------------------------------------------------------ the loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Runs the loop in its thread; an error that ends it is raised in the callers."""
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                runner.run(self._main())
            except BaseException as error:
                self._state.end_loop(error)
                raise

    async def _main(self) -> None:
        """Serves until the pool is closed, or stores the error that ended it."""
        (error,) = await asyncio.gather(self._serve(), return_exceptions=True)
        self._state.end_loop(error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error)

    async def _serve(self) -> None:
        """Scales the group and dispatches leases after every ``wakeup``, until the pool is closed.

        Raises:
            ExceptionGroup: a slot ended with an error; all other slots were ended too.
        """
        wakeup = self._group.wakeup
        async with asyncio.TaskGroup() as tasks:
            while not self._state.closed:
                for slot in self._group.reconcile(self._scale_request()):
                    tasks.create_task(self._group.supervise(slot), name=slot.name)
                if self._vacated:
                    self._group.vacate(self._vacated)
                self._dispatch()
                await wakeup.wait()
                wakeup.clear()
            self._group.evict_all()

    def _scale_request(self) -> ScaleRequest:
        with self._lock:
            at_once, self._at_once = self._at_once, False
            queue = self._state.queue
            return ScaleRequest(self._target, at_once, demand=queue.num_waiting + queue.num_leases)

    def _dispatch(self) -> None:
        """Leases waiting tasks to workers that are idle or fed; interrupts those whose lease has changed."""
        group, queue, most = self._group, self._state.queue, self._config.tasks_per_lease
        staying = [slot for slot in group.fed if slot.serves]
        with self._lock:
            handed_out = queue.hand_out(group.idle, busy=staying, num_coming=group.num_coming, most=most)
            changed = queue.take_changed()
            outdated = [slot for slot in group.fed if slot in changed and not slot.in_flight.are(queue.on_lease(slot))]
            group.usage.note_in_flight(time.monotonic(), queue.num_leased)
        for slot in handed_out:
            if slot.state is WorkerState.IDLE:
                slot.assign()
        for slot in outdated:
            slot.interrupt()

    async def _work(self, slot: WorkerSlot[TaskT, ResultT]) -> None:
        """Runs leases on the worker of a slot until it fails, leaves, retires, or is released for being idle."""
        idle_release_s = self._config.idle_release_s or None
        try:
            while slot.serves:
                if await slot.next_lease(idle_release_s):
                    await self._run_lease(slot)
                elif slot.serves and self._group.has_surplus:
                    log.info("%s is released after %g s without work", slot.name, idle_release_s)
                    slot.release()
                    return
            slot.kill()
        except Evicted:
            self._state.give_back(slot)
            self._group.wakeup.set()
            raise
        except SagaError as error:
            self._fail(slot, error)

    async def _run_lease(self, slot: WorkerSlot[TaskT, ResultT]) -> None:
        """Runs a lease, which changes meanwhile if the worker is fed, until no task of it is left."""
        while lease := self._state.present_lease(slot):
            try:
                finished = await slot.run(lease, self._count_late)
            except FATAL as error:  # the tasks are wrong, not the worker, which keeps running
                self._state.refuse(slot, error)
                return
            self._state.finish(slot, finished)
            if slot.is_fed:
                self._dispatch()

    def _fail(self, slot: WorkerSlot[TaskT, ResultT], error: SagaError) -> None:
        """Kills a worker that failed; the tasks that it had are queued to be retried one by one, or quarantined.

        A worker on a node that is about to be taken away fails when it is, which is no fault of the tasks.
        """
        if slot.info is not None and slot.info.node_id in self._vacated:
            self._group.num_drained += not slot.retiring
            slot.kill()
            self._state.give_back(slot)
            self._group.wakeup.set()
            log.warning("%s; its node was about to be taken away, and its groups are leased again", error)
            return
        self._group.num_replacements += 1
        slot.kill()
        num_retried, quarantined = self._state.fail(slot, error)
        self._group.wakeup.set()
        log.warning("%s; replacing it%s", error, f", {num_retried} groups are retried" if num_retried else "")
        for one in quarantined:
            log.warning("pair %s is quarantined after %d workers failed on it", one.pair_id, one.attempts)

    def _count_late(self, num_groups: int) -> None:
        """Counts results of a worker that had already been replaced, whose tasks other workers do or have done."""
        self._state.count_duplicates(num_groups)
        log.warning("%s: a late answer with %d groups was dropped", self._adapter.name, num_groups)
