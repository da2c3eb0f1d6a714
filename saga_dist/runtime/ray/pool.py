"""A pool of worker actors: leases, retries on other workers, replacement of workers, deduplication by pair id.

One thread runs one event loop, with one coroutine that dispatches leases and one coroutine per worker slot:

    caller    submit ──► queue ─────────────┐                      ┌──► results ──► collect, poll
                                            ▼                      │
    loop      wakeup ──► _serve: scale, dispatch ──► slot: run a lease ──► finish | fail ──► wakeup

Every wait ends:

- A caller in ``collect`` waits for a result; the loop, ``forget`` and ``close`` wake it.
- ``_serve`` waits for the event ``wakeup``, which callers and slots set.
- A slot waits for its worker; the worker's answer, the deadline, a missed heartbeat or an eviction ends the wait
  (``worker_slot``).

Therefore every lease ends. A failed lease costs each of its tasks one of a bounded number of attempts, after which the
result of the task is ``Quarantined``. A pool that cannot start any worker ends with an error after the start deadline
(``worker_group``). When the loop ends for any reason, callers are woken and get its error.

Queue, results and errors are shared between threads and guarded by one lock; only the loop uses all other state.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

from saga_dist.errors import SagaError, WorkerError
from saga_dist.runtime.ray.adapter import ActorAdapter, PoolConfig, WorkerStatus
from saga_dist.runtime.ray.errors import FATAL, WorkerInfo
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
        self._lock = threading.Condition()
        """Guards the attributes below; notified when a waiting caller has to check them."""
        self._queue: WorkQueue[TaskT] = WorkQueue(
            max_attempts=config.max_attempts, max_quarantined=config.max_quarantined
        )
        self._results: list[ResultT | Quarantined] = []
        self._errors: deque[SagaError] = deque()
        """Errors of leases that did not end the pool; each is raised once."""
        self._loop_error: BaseException | None = None
        """Error that ended the loop; raised by every later call."""
        self._closed = False
        self._target, self._at_once = config.workers, False
        self._reported_replacements = 0

    # ------------------------------------------------------------------ tasks and results

    def start(self) -> None:
        """Starts the workers in the background; ``submit`` and ``call`` call it too."""
        with self._lock:
            if self._closed:
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
            self._raise_error()
            for task in tasks:
                self._queue.add(self._adapter.task_key(task), task)
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
            while not (results := self.poll()) and len(self._queue):
                self._check_stop()
                self._lock.wait(_SLICE_S)
            return results

    def poll(self) -> list[ResultT | Quarantined]:
        """Returns the finished results, an empty list when there are none; does not wait.

        Raises the errors of ``collect``.
        """
        with self._lock:
            self._raise_error()
            results, self._results = self._results, []
            return results

    @property
    def num_pending(self) -> int:
        """Number of tasks that were submitted and whose results were not collected."""
        with self._lock:
            return len(self._queue) + len(self._results)

    @property
    def runs_in_background(self) -> bool:
        """True, because workers are other processes."""
        return True

    def metrics(self) -> dict[str, float]:
        """Returns the counts and durations since the last call, by name."""
        with self._lock:
            counts = self._queue.take_counts()
            replacements = self._group.num_replacements
            counts["replacements"] = replacements - self._reported_replacements
            self._reported_replacements = replacements
        numbers = {name: float(number) for name, number in counts.items()}
        return {**numbers, "workers": float(self._group.num_up), **self._group.usage.take(time.monotonic())}

    def cancel(self, pair_ids: Collection[str]) -> None:
        """Drops the tasks of these pairs that are pending, and their uncollected results; ignores other ids."""
        dropped = set(pair_ids)
        with self._lock:
            self._queue.cancel(dropped)
            self._results = [result for result in self._results if self._pair_id(result) not in dropped]
            self._lock.notify_all()

    def forget(self) -> None:
        """Drops all pending tasks and all uncollected results and errors; answers that arrive later are ignored."""
        with self._lock:
            self._queue.forget()
            self._results.clear()
            self._errors.clear()
            self._lock.notify_all()

    def close(self) -> None:
        """Ends the loop and all workers and drops all tasks; a second call does nothing more."""
        with self._lock:
            self._closed, self._loop_error = True, None
            self.forget()
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
            self._raise_error()
            assert self._loop is not None
            answer = asyncio.run_coroutine_threadsafe(self._group.call(method), self._loop)
        try:
            return self._wait_for_answer(answer)
        except (concurrent.futures.CancelledError, TimeoutError):
            with self._lock:
                self._raise_error()
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

    def _pair_id(self, result: ResultT | Quarantined) -> str:
        return result.pair_id if isinstance(result, Quarantined) else self._adapter.result_key(result)

    def _raise_error(self) -> None:
        if self._errors:
            raise self._errors.popleft()
        if self._loop_error is not None:
            raise self._loop_error

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
                self._set_loop_error(error)
                raise

    async def _main(self) -> None:
        """Serves until the pool is closed, or stores the error that ended it."""
        (error,) = await asyncio.gather(self._serve(), return_exceptions=True)
        self._set_loop_error(error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error)

    def _set_loop_error(self, error: BaseException | None) -> None:
        """Stores the error that ended the loop, unless the pool was closed, and wakes the callers."""
        with self._lock:
            self._loop_error = None if self._closed else error
            self._lock.notify_all()

    async def _serve(self) -> None:
        """Scales the group and dispatches leases after every ``wakeup``, until the pool is closed.

        Raises:
            ExceptionGroup: a slot ended with an error; all other slots were ended too.
        """
        wakeup = self._group.wakeup
        async with asyncio.TaskGroup() as tasks:
            while not self._closed:
                for slot in self._group.reconcile(self._scale_request()):
                    tasks.create_task(self._group.supervise(slot), name=slot.name)
                self._dispatch()
                await wakeup.wait()
                wakeup.clear()
            self._group.evict_all()

    def _scale_request(self) -> ScaleRequest:
        with self._lock:
            at_once, self._at_once = self._at_once, False
            return ScaleRequest(self._target, at_once, demand=self._queue.num_waiting + self._queue.num_leases)

    def _dispatch(self) -> None:
        """Leases waiting tasks to idle workers."""
        group, tasks_per_lease = self._group, self._config.tasks_per_lease
        with self._lock:
            leases = self._queue.hand_out(group.idle, num_coming=group.num_coming, most=tasks_per_lease)
        for slot, tasks in leases.items():
            slot.assign(tasks)

    async def _work(self, slot: WorkerSlot[TaskT, ResultT]) -> None:
        """Runs leases on the worker of a slot until it fails, leaves, or is released for being idle."""
        idle_release_s = self._config.idle_release_s or None
        try:
            while not slot.leaving:
                tasks = await slot.next_lease(idle_release_s)
                if tasks is not None:
                    await self._run_lease(slot, tasks)
                elif self._group.has_surplus:
                    log.info("%s is released after %g s without work", slot.name, idle_release_s)
                    slot.release()
                    return
        except Evicted:
            with self._lock:
                self._queue.give_back(slot)
            self._group.wakeup.set()
            raise
        except SagaError as error:
            self._fail(slot, error)

    async def _run_lease(self, slot: WorkerSlot[TaskT, ResultT], tasks: Sequence[TaskT]) -> None:
        """Runs one lease and stores its results, or the error by which the worker refused it."""
        results: list[ResultT] = []
        errors: list[SagaError] = []
        try:
            results = await slot.run(tasks, on_late=partial(self._count_late, len(tasks)))
        except FATAL as error:  # the tasks are wrong, not the worker, which keeps running
            errors = [error]
        with self._lock:
            wanted = set(self._queue.finish(slot))  # without the tasks that were cancelled or forgotten meanwhile
            if wanted:
                self._results += [result for result in results if self._adapter.result_key(result) in wanted]
                self._errors += errors
            self._lock.notify_all()

    def _fail(self, slot: WorkerSlot[TaskT, ResultT], error: SagaError) -> None:
        """Kills a worker that failed; the tasks of its lease are queued to be retried one by one, or quarantined."""
        self._group.num_replacements += 1
        slot.kill()
        with self._lock:
            num_tasks = len(self._queue.on_lease(slot))
            quarantined = self._queue.fail(slot, str(error))
            self._results += quarantined
            self._lock.notify_all()
        self._group.wakeup.set()
        retried = num_tasks - len(quarantined)
        log.warning("%s; replacing it%s", error, f", {retried} groups are retried" if retried else "")
        for one in quarantined:
            log.warning("pair %s is quarantined after %d workers failed on it", one.pair_id, one.attempts)

    def _count_late(self, num_tasks: int) -> None:
        """Counts the answer of a worker that had already been replaced, whose tasks other workers do or have done."""
        with self._lock:
            self._queue.count_duplicates(num_tasks)
        log.warning("%s: a late answer with %d groups was dropped", self._adapter.name, num_tasks)
