"""The adapters of the rollout pool and of the replay pool to their actors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import ray

from saga_dist.config import RunConfig
from saga_dist.protocols import GradientHandle
from saga_dist.runtime.leftovers import Leftovers
from saga_dist.runtime.ray.actors import BaseActor, Factories, ReplayActor, RolloutActor, spawn
from saga_dist.runtime.ray.adapter import ActorAdapter
from saga_dist.runtime.ray.endings import Endings
from saga_dist.runtime.ray.errors import WorkerInfo
from saga_dist.runtime.ray.object_refs import ObjectHandle
from saga_dist.types import GradientTask, RolloutTask, ScoredGroup
from saga_dist.wire import groups_from_batch

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


class WorkerAdapter(ActorAdapter[TaskT, ResultT]):
    """Base of both adapters: creates and ends the actors of one role.

    Args:
        config: the whole configuration.
        factories: functions that build the plain objects.
        missing: returns what the actors without a node wait for.
        endings: ends the actors; None for ones whose leftovers are recorded nowhere.
    """

    actor_type: ClassVar[type[BaseActor]]
    """Class of the actors; its role names the pool and the section of the configuration."""

    def __init__(
        self, config: RunConfig, factories: Factories, missing: Callable[[], str], endings: Endings | None = None
    ) -> None:
        self._config, self._factories, self._missing = config, factories, missing
        self._endings = endings or Endings(Leftovers(None))

    def spawn(self) -> Any:
        """Returns the handle of a new actor."""
        section = self._config.rollout if self.name == "rollout" else self._config.replay
        return spawn(
            self.actor_type, self._config, self._factories, num_cpus=section.num_cpus, num_gpus=section.num_gpus
        )

    def came_up(self, info: WorkerInfo) -> None:
        """Records what the worker has created."""
        self._endings.came_up(info)

    def kill(self, actor: Any) -> None:
        """Kills the process of an actor, even if it hangs."""
        self._endings.kill(actor)

    async def end(self, actor: Any) -> None:
        """Asks an actor to close, then kills it."""
        await self._endings.end(actor)

    def missing(self) -> str:
        """Returns what the actors without a node wait for, as text; empty when every actor has one."""
        return self._missing()


class RolloutAdapter(WorkerAdapter[RolloutTask, ScoredGroup]):
    """Adapter of the rollout pool to ``RolloutActor``."""

    name, actor_type = "rollout", RolloutActor

    def send(
        self, actor: Any, tasks: Sequence[RolloutTask], cancelled: Sequence[str]
    ) -> tuple[ray.ObjectRef, Sequence[ray.ObjectRef]]:
        """Sends tasks; the answer is an Arrow batch of scored groups, and the ids of the pairs in flight."""
        return actor.run.remote(list(tasks), list(cancelled)), ()

    def receive(self, answer: Any, payloads: Sequence[ray.ObjectRef]) -> tuple[list[ScoredGroup], Sequence[str]]:
        """Returns the scored groups of the batch, and the ids of the pairs in flight."""
        batch, in_flight = answer
        return groups_from_batch(batch), in_flight

    def interrupt(self, actor: Any) -> ray.ObjectRef:
        """Makes a worker that is fed answer after the present step of its engine."""
        return actor.interrupt.remote()

    def task_key(self, task: RolloutTask) -> str:
        """Returns the pair id."""
        return task.pair.pair_id

    def result_key(self, result: ScoredGroup) -> str:
        """Returns the pair id."""
        return result.pair.pair_id


class ReplayAdapter(WorkerAdapter[GradientTask, GradientHandle]):
    """Adapter of the replay pool to ``ReplayActor``; token gradients stay in the object store."""

    name, actor_type = "replay", ReplayActor

    def send(
        self, actor: Any, tasks: Sequence[GradientTask], cancelled: Sequence[str]
    ) -> tuple[ray.ObjectRef, Sequence[ray.ObjectRef]]:
        """Sends tasks; the answer is the list of views, and one payload per task."""
        answer, *payloads = actor.run.options(num_returns=1 + len(tasks)).remote(list(tasks))
        return answer, payloads

    def receive(self, answer: Any, payloads: Sequence[ray.ObjectRef]) -> tuple[list[GradientHandle], Sequence[str]]:
        """Returns one gradient handle per task, with the reference of its payload; the worker has no more tasks."""
        views = zip(answer, payloads, strict=True)
        return [replace(view, handle=ObjectHandle(view.pair_id, ref)) for view, ref in views], ()

    def task_key(self, task: GradientTask) -> str:
        """Returns the pair id."""
        return task.pair_id

    def result_key(self, result: GradientHandle) -> str:
        """Returns the pair id."""
        return result.pair_id
