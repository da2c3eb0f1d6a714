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

log = logging.getLogger(__name__)

CLOSE_S = 10.0
"""Longest time that an actor may take to close before it is killed, seconds; vLLM with two shards takes 6."""


class Endings:
    """Ends the actors of one run.

    Args:
        leftovers: record of what the processes of this machine create.
    """

    def __init__(self, leftovers: Leftovers) -> None:
        self._leftovers = leftovers

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
        """Asks an actor to close and kills it once it has, or after ``CLOSE_S`` seconds."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await answer_of(actor.close.remote())
        except TimeoutError:
            log.warning("a worker did not close within %g s and is killed", CLOSE_S)
        except RayError:
            log.debug("the worker's process is gone already")
        finally:
            self.kill(actor)
