"""A pool of worker actors: leases, retries elsewhere, replacement, deduplication by pair id.

One thread runs one event loop with one coroutine per worker slot and one that hands out leases:

    caller    submit ──► queue ─────────────┐                      ┌──► results ──► collect, poll
                                            ▼                      │
    loop      wakeup ──► _serve: scale, hand out ──► slot: run a lease ──► finish | fail ──► wakeup

Who waits for whom. A caller in ``collect`` waits for a result, and is woken by the loop, by ``forget`` and by
``close``. ``_serve`` waits for ``wakeup``, which callers and slots set. A slot waits for its worker, and is woken by
the answer, the deadline, the heartbeat or by having to leave (``worker_slot``). So every lease ends; a lease that fails
costs each of its tasks one of a bounded number of attempts, after which the task is ``Quarantined``, a result like any
other; a pool without a worker ends by the deadline of a start (``worker_group``). When the loop ends, whatever the
reason, callers are woken and get its error.

Queue, results and errors are shared between threads and guarded by one lock; everything else belongs to the loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
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
"""Longest wait for the end of the loop, which kills all workers first."""
SLACK_S = 10.0
"""What a caller waits longer than the coroutine that it waits for, whose error says more."""
_SLICE_S = 1.0
"""Longest time between two looks of a caller that waits."""


class RayPool(Generic[TaskT, ResultT]):
    """N actors of one role behind one queue; implements ``protocols.WorkerPool``.

    Args:
        adapter: how to create and talk to the workers.
        config: how many, how much at once, how long, how often.
    """

    def __init__(self, adapter: ActorAdapter[TaskT, ResultT], config: PoolConfig) -> None:
        self._adapter, self._config = adapter, config
        self._group = WorkerGroup(adapter, config, self._work)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Condition()
        """Guards all that follows; notified when there is something to collect."""
        self._queue: WorkQueue[TaskT] = WorkQueue(
            max_attempts=config.max_attempts, max_quarantined=config.max_quarantined
        )
        self._results: list[ResultT | Quarantined] = []
        self._errors: deque[SagaError] = deque()
        """What ended a lease but not the pool; each is raised once."""
        self._end: BaseException | None = None
        """What ended the loop; raised again and again."""
        self._closed = False
        self._target, self._at_once = config.workers, False
        self._reported_replacements = 0

    # ------------------------------------------------------------------ tasks and results

    def start(self) -> None:
        """Starts the workers in the background; ``submit`` and ``ask`` do it otherwise."""
        with self._lock:
            if self._closed:
                raise WorkerError("the pool is closed", where=self._adapter.name)
            if self._thread is None:
                self._loop, name = asyncio.new_event_loop(), f"{self._adapter.name} pool"
                self._thread = threading.Thread(target=self._run, args=(self._loop,), name=name, daemon=True)
                self._thread.start()

    def submit(self, tasks: Sequence[TaskT]) -> None:
        """Queues tasks; returns at once. A task whose pair is already pending is dropped and counted.

        Raises what ``collect`` raises.
        """
        self.start()
        with self._lock:
            self._raise_error()
            for task in tasks:
                self._queue.add(self._adapter.task_key(task), task)
        self._wake()

    def collect(self) -> list[ResultT | Quarantined]:
        """Returns at least one finished result, or an empty list when nothing is pending.

        A task on which ``max_attempts`` workers failed comes back as ``Quarantined``.

        Raises:
            UserError: a worker found a mistake that every other worker would find too. The tasks of that lease are no
                longer pending; the others are.
            WorkerError: too many tasks were quarantined, or no worker could be brought up in time. The pool has ended.
        """
        with self._lock:
            while not (results := self.poll()) and len(self._queue):
                self._lock.wait(_SLICE_S)
            return results

    def poll(self) -> list[ResultT | Quarantined]:
        """Returns the finished results that are here, perhaps none; never waits. Raises what ``collect`` raises."""
        with self._lock:
            self._raise_error()
            results, self._results = self._results, []
            return results

    @property
    def num_pending(self) -> int:
        """Tasks submitted and not yet collected."""
        with self._lock:
            return len(self._queue) + len(self._results)

    def metrics(self) -> dict[str, float]:
        """Returns what happened since the last call, by plain quantity names."""
        with self._lock:
            counts = self._queue.take_counts()
            replacements = self._group.num_replacements
            counts["replacements"] = replacements - self._reported_replacements
            self._reported_replacements = replacements
        numbers = {name: float(number) for name, number in counts.items()}
        return {**numbers, "workers": float(self._group.num_up), **self._group.usage.take(time.monotonic())}

    def forget(self) -> None:
        """Drops every pending task, every result and error that was not taken; late answers are ignored."""
        with self._lock:
            self._queue.forget()
            self._results.clear()
            self._errors.clear()
            self._lock.notify_all()

    def close(self) -> None:
        """Ends the loop and every worker, and forgets all tasks; closing twice is fine."""
        with self._lock:
            self._closed, self._end = True, None
            self.forget()
        self._wake()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                log.error("%s: the pool's event loop did not end within %g s", self._adapter.name, CLOSE_S)

    # ------------------------------------------------------------------ workers

    def resize(self, number: int, *, at_once: bool = False) -> None:
        """Asks for another number of workers; returns at once, nobody pauses.

        Args:
            number: at least 1.
            at_once: workers that leave return their leases instead of finishing them.
        """
        assert number >= 1, f"a pool of {number} workers would never end"
        with self._lock:
            self._target, self._at_once = number, at_once
        self._wake()

    @property
    def target(self) -> int:
        """Workers asked for."""
        return self._target

    def status(self) -> tuple[WorkerStatus, ...]:
        """Returns the status of every slot, the oldest first."""
        return self._group.status()

    def workers(self) -> dict[str, WorkerInfo]:
        """Returns where each running worker lives, by name."""
        return {status.name: status.info for status in self.status() if status.info is not None}

    def ask(self, method: str) -> Any:
        """Returns the answer of one running worker to ``method()``; of another when that one dies meanwhile.

        Waits for a worker to be up if need be, never longer than a start and a lease may take together.
        """
        self.start()
        with self._lock:
            self._raise_error()
            assert self._loop is not None
            answer = asyncio.run_coroutine_threadsafe(self._group.ask(method), self._loop)
        timeouts = self._config.timeouts
        try:
            return answer.result(timeouts.start_s + timeouts.lease_s + SLACK_S)
        except (concurrent.futures.CancelledError, TimeoutError):
            with self._lock:
                self._raise_error()
            raise WorkerError("the pool was closed", where=self._adapter.name) from None
        finally:
            answer.cancel()  # the wait may have ended by an interrupt

    # ------------------------------------------------------------------ inside, of any thread

    def _raise_error(self) -> None:
        if self._errors:
            raise self._errors.popleft()
        if self._end is not None:
            raise self._end

    def _wake(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._group.wakeup.set)

    # ------------------------------------------------------------------ the loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Runs the loop in its thread; what ends it is handed to the callers."""
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                runner.run(self._main())
            except BaseException as error:
                self._note_end(error)
                raise

    async def _main(self) -> None:
        """Serves until the pool is closed or a slot ends with an error, which is noted while the loop still runs."""
        (error,) = await asyncio.gather(self._serve(), return_exceptions=True)
        self._note_end(error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error)

    def _note_end(self, error: BaseException | None) -> None:
        with self._lock:
            self._end = None if self._closed else error
            self._lock.notify_all()

    async def _serve(self) -> None:
        """Scales and hands out leases whenever something has changed, until the pool is closed.

        Raises:
            ExceptionGroup: a slot ended with an error; all others were ended too.
        """
        wakeup = self._group.wakeup
        async with asyncio.TaskGroup() as tasks:
            while not self._closed:
                for slot in self._group.reconcile(self._scale_request()):
                    tasks.create_task(self._group.supervise(slot), name=slot.name)
                self._hand_out()
                await wakeup.wait()
                wakeup.clear()
            self._group.evict_all()

    def _scale_request(self) -> ScaleRequest:
        with self._lock:
            at_once, self._at_once = self._at_once, False
            return ScaleRequest(self._target, at_once, demand=self._queue.num_waiting + self._queue.num_leases)

    def _hand_out(self) -> None:
        group, most = self._group, self._config.tasks_per_lease
        with self._lock:
            leases = self._queue.hand_out(group.idle, num_coming=group.num_coming, most=most)
        for slot, tasks in leases.items():
            slot.assign(tasks)

    async def _work(self, slot: WorkerSlot[TaskT, ResultT]) -> None:
        """Lets a worker run leases until it fails, leaves, or has idled long enough to be released."""
        patience_s = self._config.idle_release_s or None
        try:
            while not slot.leaving:
                tasks = await slot.next_lease(patience_s)
                if tasks is not None:
                    await self._run_lease(slot, tasks)
                elif self._group.has_surplus:
                    log.info("%s is released after %g s without work", slot.name, patience_s)
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
        results: list[ResultT] = []
        refusals: list[SagaError] = []
        try:
            results = await slot.run(tasks, on_late=partial(self._count_late, len(tasks)))
        except FATAL as error:  # the worker refused its tasks and is as good as before
            refusals = [error]
        with self._lock:
            if self._queue.finish(slot):  # nobody wants the results of forgotten tasks
                self._results += results
                self._errors += refusals
                self._lock.notify_all()

    def _fail(self, slot: WorkerSlot[TaskT, ResultT], error: SagaError) -> None:
        """Ends a worker that failed. The tasks of its lease are retried singly elsewhere, or quarantined."""
        self._group.num_replacements += 1
        slot.kill()
        with self._lock:
            num_tasks = len(self._queue.on_lease(slot))
            lost = self._queue.fail(slot, str(error))
            self._results += lost
            self._lock.notify_all()
        self._group.wakeup.set()
        retried = num_tasks - len(lost)
        log.warning("%s; replacing it%s", error, f", {retried} groups go elsewhere" if retried else "")
        for group in lost:
            log.warning("pair %s is quarantined after %d workers failed on it", group.pair_id, group.attempts)

    def _count_late(self, num_tasks: int) -> None:
        """Counts the answer of a worker that was given up: its groups have been, or will be, done elsewhere."""
        with self._lock:
            self._queue.count_duplicates(num_tasks)
        log.warning("%s: a late answer with %d groups was dropped", self._adapter.name, num_tasks)
