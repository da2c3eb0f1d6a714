"""A learner of several processes, behind one actor with the interface of ``LearnerActor``.

    RemoteLearner ──► LearnerGroupActor ──► RankActor 0 (answers, publishes, saves)
                       (no model, no CPU)  └► RankActor 1, 2, …  (the same calls, their share of the images)

The group sends every collective call to all ranks, in the order of the calls, and waits for all of them. The first
error of any rank ends the group. The other ranks may hang in a collective operation, so they are killed. The error that
is reported is the root cause, and not the loss of a peer that follows from it. The group owns the ranks, so they end
with it.
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
from saga_dist.runtime.devices import resolve_device
from saga_dist.runtime.ray.actors import BaseActor, Factories, LearnerActor, spawn
from saga_dist.runtime.ray.errors import WorkerInfo, to_saga_error
from saga_dist.runtime.ray.remote_learner import RESUME
from saga_dist.types import MicroBatch
from saga_dist.workers.data_parallel import ALONE, PeerLost, Ranks, join, join_store, open_store

ROOT_CAUSE_S = 5.0
"""Longest wait for the errors of other ranks after a rank has reported the loss of a peer, seconds."""


def spawn_learner(config: RunConfig, factories: Factories) -> Any:
    """Returns the handle of a new learner: a ``LearnerActor``, or a ``LearnerGroupActor`` for several processes."""
    runtime = config.runtime
    if runtime.learner_processes == 1:
        return spawn(
            LearnerActor, config, factories, num_cpus=runtime.learner_num_cpus, num_gpus=runtime.learner_num_gpus
        )
    # Preferably on the driver's node, because the autoscaler may remove other nodes.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return spawn(LearnerGroupActor, config, factories, num_cpus=0, num_gpus=0, scheduling_strategy=here)


class RankActor(LearnerActor):
    """One rank of the learner. Only rank 0 publishes tokens, returns arrays and saves."""

    _ranks: Ranks = ALONE

    def open_store(self) -> tuple[str, int]:
        """Opens the rendezvous store of the ranks in this process; returns its address and port."""
        host = ray.util.get_node_ip_address()
        runtime = self._config.runtime
        self._store = open_store(host, size=runtime.learner_processes, timeout_s=runtime.learner_deadline_s)
        return host, self._store.port

    def start_rank(self, rank: int, host: str, port: int) -> WorkerInfo:
        """Joins the other ranks and builds the learner; returns node and process of this rank."""
        runtime = self._config.runtime
        size, timeout_s = runtime.learner_processes, runtime.learner_deadline_s
        if rank:
            self._store = join_store(host, port, size=size, timeout_s=timeout_s)
        device = resolve_device(self._config.model.device)
        self._ranks = join(self._store, rank=rank, size=size, device=device, timeout_s=timeout_s)
        return self.start()

    def encode(self, batch: MicroBatch) -> EncodedBatch | None:  # type: ignore[override]
        """Encodes a micro-batch; rank 0 publishes one payload per pair, other ranks return None."""
        if self._ranks.rank == 0:
            return super().encode(batch)
        self._learner.encode(batch)
        return None

    def encode_no_grad(self, batch: MicroBatch) -> EncodedBatch | None:  # type: ignore[override]
        """Encodes a later micro-batch; rank 0 publishes one payload per pair, other ranks return None."""
        if self._ranks.rank == 0:
            return super().encode_no_grad(batch)
        self._learner.encode_no_grad(batch)
        return None

    def embed(self, split: str, pretrained: bool) -> Embeddings | None:  # type: ignore[override]
        """Embeds this rank's share of a split; rank 0 returns the embeddings of the whole split, other ranks None."""
        embeddings = super().embed(split, pretrained)
        return embeddings if self._ranks.rank == 0 else None

    def _make_learner(self, config: RunConfig) -> Learner:
        return self._factories.learner(config, ranks=self._ranks)


def _on_all_ranks(method: str) -> Callable[..., Any]:
    """Returns a method that calls ``method`` on all ranks and returns the result of rank 0."""

    def call(self: LearnerGroupActor, *arguments: Any) -> Any:
        return self._call(self.ranks, method, arguments)

    return call


def _on_rank_0(method: str) -> Callable[..., Any]:
    """Returns a method that calls ``method`` on rank 0 and returns its result."""

    def call(self: LearnerGroupActor, *arguments: Any) -> Any:
        return self._call(self.ranks[:1], method, arguments)

    return call


class LearnerGroupActor(BaseActor):
    """Actor that forwards calls to the ranks of one learner; it has the methods of ``LearnerActor``."""

    role: ClassVar[str] = ""
    ranks: tuple[Any, ...] = ()
    _infos: tuple[WorkerInfo | None, ...] = ()

    encode, finish_step, embed = _on_all_ranks("encode"), _on_all_ranks("finish_step"), _on_all_ranks("embed")
    encode_no_grad, reset, load = _on_all_ranks("encode_no_grad"), _on_all_ranks("reset"), _on_all_ranks("load")
    step, labels, split_hash = _on_rank_0("step"), _on_rank_0("labels"), _on_rank_0("split_hash")
    encode_pairs, backbone_digest = _on_rank_0("encode_pairs"), _on_rank_0("backbone_digest")
    training_images = _on_rank_0("training_images")
    save, save_encoder, tower_digest = _on_rank_0("save"), _on_rank_0("save_encoder"), _on_rank_0("tower_digest")

    def start(self) -> WorkerInfo:
        """Starts all ranks and returns node and process of rank 0."""
        runtime = self._config.runtime
        resources = {"num_cpus": runtime.learner_num_cpus, "num_gpus": runtime.learner_num_gpus}
        self.ranks = tuple(
            spawn(RankActor, self._config, self._factories, **resources) for _ in range(runtime.learner_processes)
        )
        self._infos = (None,) * len(self.ranks)
        host, port = self._call(self.ranks[:1], "open_store", ())
        starts = [actor.start_rank.remote(rank, host, port) for rank, actor in enumerate(self.ranks)]
        self._infos = tuple(self._collect(starts))
        assert self._infos[0] is not None
        return self._infos[0]

    def expect(self, batches: Sequence[MicroBatch]) -> None:
        """Tells all ranks which micro-batches come next; does not wait for their answers."""
        for actor in self.ranks:
            actor.expect.remote(batches)

    @ray.method(concurrency_group="control")
    def health(self) -> float:
        """Returns the age of this actor when every rank has answered ``health``; does not return while a rank hangs."""
        ray.get([actor.health.remote() for actor in self.ranks])
        return super().health()

    def _call(self, ranks: Sequence[Any], method: str, arguments: Sequence[Any]) -> Any:
        """Calls a method on some ranks and waits for all of them; returns the result of the first one.

        Raises:
            SagaError: a rank raised it or was lost; the group has ended.
        """
        if not self.ranks:
            raise LearnerLost("its processes have ended after an error", where="learner", fix=RESUME)
        return self._collect([getattr(actor, method).remote(*arguments) for actor in ranks])[0]

    def _collect(self, refs: Sequence[ray.ObjectRef]) -> list[Any]:
        """Returns the results of ranks 0, 1, …; the first error of a rank ends the group and is raised (root cause)."""
        pending = list(refs)
        while pending:
            (ready, *_), pending = ray.wait(pending)
            if (error := self._error(refs, ready)) is not None:
                raise self._end_group(refs, pending, error)
        return ray.get(list(refs))

    def _error(self, refs: Sequence[ray.ObjectRef], ref: ray.ObjectRef) -> SagaError | None:
        """Returns the error that one of ``refs`` ended with, as an error of this package; None when it succeeded."""
        rank = list(refs).index(ref)
        try:
            ray.get(ref)
        except RayActorError as error:
            info = self._infos[rank] if rank < len(self._infos) else None
            return LearnerLost(str(to_saga_error(error, where=f"learner, rank {rank}", info=info)), fix=RESUME)
        except RayError as error:
            return to_saga_error(error, where=f"learner, rank {rank}")
        return None

    def _end_group(
        self, refs: Sequence[ray.ObjectRef], pending: Sequence[ray.ObjectRef], first: SagaError
    ) -> SagaError:
        """Kills every rank and returns the error to report: the root cause if ``first`` is the loss of a peer."""
        errors = [first]
        if isinstance(first, PeerLost):
            late, _ = ray.wait(list(pending), num_returns=len(pending), timeout=ROOT_CAUSE_S) if pending else ([], [])
            errors += [error for ref in late if (error := self._error(refs, ref)) is not None]
        for actor in self.ranks:
            ray.kill(actor, no_restart=True)
        self.ranks = ()
        return next((error for error in errors if not isinstance(error, PeerLost)), first)
