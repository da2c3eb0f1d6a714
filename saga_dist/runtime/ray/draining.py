"""Nodes that the cluster is about to take away, and what a run does before they go.

A spot interruption, a scale-down, a pod that is deleted or `ray drain-node` gives notice: Ray then lists the node as
draining and places nothing more on it. A thread of the run reads that list:

    draining nodes ──poll──► DrainWatch ──► pools: workers there get no more tasks and are replaced
                                       └──► coordinator: one checkpoint, if the learner or the driver is there

The deadline of a notice is by the clock of the machine that gave it, so it is logged and nothing is decided by it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

import ray
from ray._private import state
from ray.exceptions import RayError

from saga_dist.runtime.ray.actor_table import nodes_of_role

log = logging.getLogger(__name__)

MAX_POLL_S = 5.0
"""Longest time between two reads of the list, seconds; the shortest notices of clouds are 30 s."""
CLOSE_S = 5.0
"""Longest time that ``close`` waits for a read in progress, seconds."""


class VacatablePool(Protocol):
    """Protocol of a pool whose workers can be moved away from nodes."""

    def vacate(self, node_ids: Collection[str]) -> None:
        """Gives no more tasks to the workers on these nodes and replaces them; does not wait for it."""


def draining_nodes() -> Mapping[str, int]:
    """Returns the deadline of each draining node of the cluster, ms since 1970, 0 for none, by Ray's id of the node.

    Ray has no public function for it, so only this module asks its state for it. While the head is out of reach, the
    call does not return.
    """
    return state.state.get_draining_nodes()


def nodes_with_state() -> set[str]:
    """Returns the ids of the nodes whose loss costs optimizer steps: those of the learner and of this process."""
    return nodes_of_role("learner") | {ray.get_runtime_context().get_node_id()}


class DrainWatch:
    """Thread of a run that reacts to notices.

    Args:
        pools: pools whose workers are moved away.
        heartbeat_s: the run's heartbeat, seconds; the list is read at least as often.
        draining: returns the deadline of each draining node, by id.
        with_state: returns the ids of the nodes whose loss costs optimizer steps.
    """

    def __init__(
        self,
        pools: Sequence[VacatablePool],
        *,
        heartbeat_s: float,
        draining: Callable[[], Mapping[str, int]] = draining_nodes,
        with_state: Callable[[], Collection[str]] = nodes_with_state,
    ) -> None:
        self._pools, self._draining, self._with_state = pools, draining, with_state
        self._poll_s = min(heartbeat_s, MAX_POLL_S)
        self._known = set[str]()
        self._checkpoint_due, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="drain watch", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join(CLOSE_S)

    def take_checkpoint_request(self) -> bool:
        """Returns True once after a notice for a node whose loss costs optimizer steps."""
        due = self._checkpoint_due.is_set()
        self._checkpoint_due.clear()
        return due

    def poll(self) -> None:
        """Reads the list once and reacts to what is new on it.

        Raises:
            RayError: Ray cannot be asked at present.
            RuntimeError: likewise.
        """
        deadlines = self._draining()
        new = deadlines.keys() - self._known
        if not new:
            return
        has_state = not new.isdisjoint(self._with_state())
        self._known |= new
        for pool in self._pools:
            pool.vacate(new)
        for node_id in sorted(new):
            log.warning(
                "node %s is about to be taken away%s; its workers get no more groups and are replaced elsewhere",
                node_id,
                _deadline_text(deadlines[node_id]),
            )
        if has_state:
            log.warning("the learner or this process is there; a checkpoint is written as soon as a step allows it")
            self._checkpoint_due.set()

    def _run(self) -> None:
        failing = False
        while not self._closed.wait(self._poll_s):
            try:
                self.poll()
                failing = False
            except (RayError, RuntimeError) as error:
                if not failing:
                    log.warning("Ray does not say which nodes are draining (%s); trying again", error)
                failing = True


def _deadline_text(deadline_ms: int) -> str:
    """Returns the deadline of a notice as the end of a clause; empty when it has none."""
    return f" at {datetime.fromtimestamp(deadline_ms / 1000, UTC):%H:%M:%S} UTC" if deadline_ms else ""
