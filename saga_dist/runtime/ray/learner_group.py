"""A learner of several processes behind one: callers see a ``LearnerActor`` and cannot tell.

    RemoteLearner ──► LearnerGroupActor ──► RankActor 0 (answers, publishes, saves)
                       (no model, no CPU)  └► RankActor 1, 2, …  (the same calls, their share of the images)

The group sends every collective call to all ranks, in the order it came in, and waits for all of them. The first error
of any rank ends the group: its other ranks may hang in a collective, so they are killed, and the error that is reported
is the cause, not the echo ("another rank is gone") of it. Ranks are owned by the group and die with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from saga_dist.config import RunConfig
from saga_dist.errors import LearnerLost, SagaError
from saga_dist.protocols import Embeddings, EncodedBatch, Learner
from saga_dist.runtime.build import resolve_device
from saga_dist.runtime.ray.actors import BaseActor, Factories, LearnerActor, spawn
from saga_dist.runtime.ray.errors import WorkerInfo, to_saga_error
from saga_dist.runtime.ray.remote_learner import RESUME
from saga_dist.types import MicroBatch
from saga_dist.workers.data_parallel import ALONE, PeerLost, Ranks, join, join_store, open_store

ROOT_CAUSE_S = 5.0
"""How long the other ranks' errors are waited for when one says that another is gone."""


def spawn_learner(config: RunConfig, factories: Factories) -> Any:
    """Returns the handle of a new learner: one actor, or a group that behaves like one."""
    runtime = config.runtime
    if runtime.learner_processes == 1:
        return spawn(
            LearnerActor, config, factories, num_cpus=runtime.learner_num_cpus, num_gpus=runtime.learner_num_gpus
        )
    # At the driver's side: no pod that the autoscaler may take away again.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return spawn(LearnerGroupActor, config, factories, num_cpus=0, num_gpus=0, scheduling_strategy=here)


class RankActor(LearnerActor):
    """One rank of the learner. Only rank 0 publishes, answers with arrays, and is asked to save."""

    _ranks: Ranks = ALONE

    def open_store(self) -> tuple[str, int]:
        """Returns address and port of the meeting point, which lives in this process."""
        host = ray.util.get_node_ip_address()
        runtime = self._config.runtime
        self._store = open_store(host, size=runtime.learner_processes, timeout_s=runtime.learner_deadline_s)
        return host, self._store.port

    def start_rank(self, rank: int, host: str, port: int) -> WorkerInfo:
        """Meets the other ranks, builds the learner and returns where it runs."""
        runtime = self._config.runtime
        size, timeout_s = runtime.learner_processes, runtime.learner_deadline_s
        if rank:
            self._store = join_store(host, port, size=size, timeout_s=timeout_s)
        device = resolve_device(self._config.model.device)
        self._ranks = join(self._store, rank=rank, size=size, device=device, timeout_s=timeout_s)
        return self.start()

    def encode(self, batch: MicroBatch) -> EncodedBatch | None:  # type: ignore[override]
        """Encodes a micro-batch; rank 0 publishes one payload per pair."""
        if self._ranks.rank == 0:
            return super().encode(batch)
        self._learner.encode(batch)
        return None

    def encode_no_grad(self, batch: MicroBatch) -> EncodedBatch | None:  # type: ignore[override]
        """Encodes a later step's micro-batch; rank 0 publishes one payload per pair."""
        if self._ranks.rank == 0:
            return super().encode_no_grad(batch)
        self._learner.encode_no_grad(batch)
        return None

    def embed(self, split: str, pretrained: bool) -> Embeddings | None:  # type: ignore[override]
        """Embeds a share of a split; rank 0 returns all of it."""
        embeddings = super().embed(split, pretrained)
        return embeddings if self._ranks.rank == 0 else None

    def _make_learner(self, config: RunConfig) -> Learner:
        return self._factories.learner(config, ranks=self._ranks)


def _of_all(method: str) -> Callable[..., Any]:
    def call(self: LearnerGroupActor, *arguments: Any) -> Any:
        return self.ask(self.ranks, method, arguments)

    return call


def _of_first(method: str) -> Callable[..., Any]:
    def call(self: LearnerGroupActor, *arguments: Any) -> Any:
        return self.ask(self.ranks[:1], method, arguments)

    return call


class LearnerGroupActor(BaseActor):
    """Drives the ranks of one learner; offers what ``LearnerActor`` offers."""

    role: ClassVar[str] = ""
    ranks: tuple[Any, ...] = ()
    _infos: tuple[WorkerInfo | None, ...] = ()

    encode, finish_step, embed = _of_all("encode"), _of_all("finish_step"), _of_all("embed")
    encode_no_grad, reset, load = _of_all("encode_no_grad"), _of_all("reset"), _of_all("load")
    step, labels, split_hash = _of_first("step"), _of_first("labels"), _of_first("split_hash")
    encode_pairs, backbone_digest = _of_first("encode_pairs"), _of_first("backbone_digest")
    save, save_encoder = _of_first("save"), _of_first("save_encoder")

    def start(self) -> WorkerInfo:
        """Brings all ranks up and returns where rank 0 runs."""
        runtime = self._config.runtime
        asks = {"num_cpus": runtime.learner_num_cpus, "num_gpus": runtime.learner_num_gpus}
        self.ranks = tuple(
            spawn(RankActor, self._config, self._factories, **asks) for _ in range(runtime.learner_processes)
        )
        self._infos = (None,) * len(self.ranks)
        host, port = self.ask(self.ranks[:1], "open_store", ())
        starts = [actor.start_rank.remote(rank, host, port) for rank, actor in enumerate(self.ranks)]
        self._infos = tuple(self._collect(starts))
        assert self._infos[0] is not None
        return self._infos[0]

    @ray.method(concurrency_group="control")
    def health(self) -> float:
        """Returns the age of this process once every rank has shown that it lives; a hung one withholds the answer."""
        ray.get([actor.health.remote() for actor in self.ranks])
        return super().health()

    def ask(self, ranks: Sequence[Any], method: str, arguments: Sequence[Any]) -> Any:
        """Returns rank 0's answer when all the asked ranks have answered."""
        if not self.ranks:
            raise LearnerLost("its processes have ended after an error", where="learner", fix=RESUME)
        return self._collect([getattr(actor, method).remote(*arguments) for actor in ranks])[0]

    def _collect(self, refs: Sequence[ray.ObjectRef]) -> list[Any]:
        """The answers of ranks 0, 1, …; an error of any of them, at once, and the end of the group."""
        pending = list(refs)
        while pending:
            (ready, *_), pending = ray.wait(pending)
            if (error := self._error(refs, ready)) is not None:
                raise self._end(refs, pending, error)
        return ray.get(list(refs))

    def _error(self, refs: Sequence[ray.ObjectRef], ref: ray.ObjectRef) -> SagaError | None:
        """What one of ``refs`` ended with: an error of ours, or None."""
        rank = list(refs).index(ref)
        try:
            ray.get(ref)
        except RayActorError as error:
            info = self._infos[rank] if rank < len(self._infos) else None
            return LearnerLost(str(to_saga_error(error, where=f"learner, rank {rank}", info=info)), fix=RESUME)
        except RayError as error:
            return to_saga_error(error, where=f"learner, rank {rank}")
        return None

    def _end(self, refs: Sequence[ray.ObjectRef], pending: Sequence[ray.ObjectRef], first: SagaError) -> SagaError:
        """Ends every rank and returns the error to report."""
        errors = [first]
        if isinstance(first, PeerLost):
            late, _ = ray.wait(list(pending), num_returns=len(pending), timeout=ROOT_CAUSE_S) if pending else ([], [])
            errors += [error for ref in late if (error := self._error(refs, ref)) is not None]
        for actor in self.ranks:
            ray.kill(actor, no_restart=True)
        self.ranks = ()
        return next((error for error in errors if not isinstance(error, PeerLost)), first)
