"""A pool of worker actors: leases, retries elsewhere, replacement, deduplication by pair id. It turns by itself.

    caller    submit ──► desk ──────────────┐   ┌──► desk ──► collect, poll
                                            ▼   │
    pump (a thread)          fill places, hand out, wait, look, accept or fail

Why every wait of a caller ends. The pump never waits longer than a second for something without a deadline. Every
lease ends, by its answer, by the pulse or by its deadline; a lease that fails costs each of its tasks one of a bounded
number of attempts, after which the task is ``Quarantined``, a result like any other; a pool without a worker ends by
the deadline of a start (``crew``). And when the pump ends, whatever the reason, callers are woken and get its error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayActorError, RayError

from saga_dist.errors import DeadlineExceeded, WorkerError
from saga_dist.runtime.ray.crew import Limits
from saga_dist.runtime.ray.desk import Desk, Seen
from saga_dist.runtime.ray.errors import WorkerInfo, to_saga_error
from saga_dist.runtime.ray.pump import Pump, Role
from saga_dist.runtime.ray.supervision import FETCH_ANSWER_S, State
from saga_dist.types import Quarantined

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
log = logging.getLogger(__name__)

_LAST_TURN_S = FETCH_ANSWER_S + 30.0


class RayPool(Generic[TaskT, ResultT]):
    """N actors of one role behind one queue; implements ``protocols.WorkerPool``.

    Args:
        role: how to spawn and talk to its workers.
        limits: how many, how much at once, how long, how often.
    """

    def __init__(self, role: Role[TaskT, ResultT], limits: Limits) -> None:
        self._role, self._limits = role, limits
        self._desk: Desk[TaskT, ResultT] = Desk(
            target=limits.workers, max_attempts=limits.max_attempts, max_quarantined=limits.max_quarantined
        )
        self._pump: Pump[TaskT, ResultT] | None = None

    # ------------------------------------------------------------------ what the coordinator sees

    def start(self) -> None:
        """Starts the pump, which spawns the workers in the background; ``submit`` does it otherwise."""
        if self._desk.closed:
            raise WorkerError("the pool is closed", where=self._role.name)
        if self._pump is None:
            self._pump = Pump(self._role, self._limits, self._desk)
            self._pump.start()

    def submit(self, tasks: Sequence[TaskT]) -> None:
        """Queues tasks; returns at once. A task whose pair is already pending is dropped and counted.

        Raises what ``collect`` raises.
        """
        self.start()
        self._desk.submit((self._role.task_key(task), task) for task in tasks)

    def collect(self) -> list[ResultT | Quarantined]:
        """Returns at least one finished result, or an empty list when nothing is pending.

        A task on which ``max_attempts`` workers failed comes back as ``Quarantined``.

        Raises:
            UserError: a worker found a mistake that every other worker would find too. The tasks of that lease are no
                longer pending; the others are.
            WorkerError: too many tasks were set aside, or no worker could be brought up in time. The pool has ended.
        """
        return self._desk.collect()

    def poll(self) -> list[ResultT | Quarantined]:
        """Returns the finished results that are here, perhaps none; never waits. Raises what ``collect`` raises."""
        return self._desk.poll()

    @property
    def num_pending(self) -> int:
        """Tasks submitted and not yet collected."""
        return self._desk.num_pending

    def metrics(self) -> dict[str, float]:
        """Returns what happened since the last call, by plain quantity names."""
        return self._desk.metrics()

    def forget(self) -> None:
        """Drops every pending task, every result and error that was not taken; late answers are ignored."""
        self._desk.forget()

    def close(self) -> None:
        """Ends the pump and every worker, and forgets all tasks; closing twice is fine."""
        self._desk.close()
        if self._pump is not None:
            self._pump.join(deadline_s=_LAST_TURN_S)

    # ------------------------------------------------------------------ workers

    def resize(self, number: int, *, at_once: bool = False) -> None:
        """Asks for another number of workers; returns at once, nobody pauses.

        Args:
            number: at least 1.
            at_once: workers that leave return their leases instead of finishing them.
        """
        assert number >= 1, f"a pool of {number} workers would never end"
        self._desk.resize(number, at_once=at_once)

    @property
    def target(self) -> int:
        """Workers asked for."""
        return self._desk.target

    def seen(self) -> tuple[Seen, ...]:
        """Returns every place as the pump last saw it, the oldest first."""
        return self._desk.seen

    def workers(self) -> dict[str, WorkerInfo]:
        """Returns where each running worker lives, by name."""
        return {seen.name: seen.info for seen in self._desk.seen if seen.info is not None}

    def ask(self, method: str) -> Any:
        """Returns the answer of one running worker to ``method()``; of another when that one dies meanwhile.

        Waits for a worker to be up if need be, never longer than a start and a lease may take together.
        """
        self.start()
        clocks, dead = self._limits.clocks, set[WorkerInfo]()
        deadline = time.monotonic() + clocks.start_s + clocks.lease_s

        def living(seen: tuple[Seen, ...]) -> Seen | None:
            up = [place for place in seen if place.info is not None and place.info not in dead]
            return min(up, key=lambda place: place.state != State.IDLE.value, default=None)

        while worker := self._desk.wait_until(living, deadline=deadline):
            assert worker.info is not None
            try:
                return ray.get(getattr(worker.actor, method).remote(), timeout=clocks.lease_s)
            except RayError as error:
                own = to_saga_error(error, where=worker.name, info=worker.info)
                if not isinstance(error, RayActorError):
                    raise own from error
                log.warning("%s; asking another worker", own)
                dead.add(worker.info)
        raise DeadlineExceeded(f"no worker to ask for {method}", where=self._role.name)
