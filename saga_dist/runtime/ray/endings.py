"""The end of actors: each is asked to close, then killed; what it could not remove itself is removed afterwards."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
from ray.exceptions import RayError

from saga_dist.runtime.leftovers import Leftovers
from saga_dist.runtime.ray.actor_table import process_of
from saga_dist.runtime.ray.adapter import answer_of
from saga_dist.runtime.ray.errors import WorkerInfo
from saga_dist.runtime.stopping import StopRequest

log = logging.getLogger(__name__)

CLOSE_S = 10.0
"""Longest time that an actor may take to close before it is killed, seconds; vLLM with two shards takes 6."""
ABORT_S = 2.0
"""Longest time when a signal has ended the start of the run, which is to end at once, seconds."""


class Endings:
    """Ends the actors of one run.

    Args:
        leftovers: record of what the processes of this machine create.
        stop: request to stop; None when there is none.
    """

    def __init__(self, leftovers: Leftovers, stop: StopRequest | None = None) -> None:
        self._leftovers, self._stop = leftovers, stop or StopRequest()

    def came_up(self, info: WorkerInfo) -> None:
        """Records what a worker has created by the end of its start, if it runs on this node."""
        if info.node_id == ray.get_runtime_context().get_node_id():
            self._leftovers.note(info.pid)

    def kill(self, actor: Any) -> None:
        """Kills an actor's process, even if it hangs, after recording what it has created."""
        process = process_of(actor)
        if process is not None and process.node_id == ray.get_runtime_context().get_node_id():
            self._leftovers.note(process.pid)
        ray.kill(actor, no_restart=True)

    async def end(self, actor: Any) -> None:
        """Asks an actor to close and kills it once it has, or at a deadline."""
        deadline_s = ABORT_S if self._stop.aborts_start else CLOSE_S
        try:
            async with asyncio.timeout(deadline_s):
                await answer_of(actor.close.remote())
        except TimeoutError:
            log.warning("a worker did not close within %g s and is killed", deadline_s)
        except RayError:
            log.debug("the worker's process is gone already")
        finally:
            self.kill(actor)
