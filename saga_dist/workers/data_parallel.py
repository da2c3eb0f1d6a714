"""A learner of several processes: the token boundary makes data parallelism exact and simple.

Every rank holds the whole encoder and the same optimizer. Of a micro-batch each runs the tower on its own share of the
images; all others' tokens are gathered as constants, so that every rank has the leaf of the whole batch:

    own images ──tower──► own rows ──gather──► X of the whole batch ──► pooler, L_DML, dL_GRPO/dX, L_KL: as one process
                              ▲                                              │
                              └──────── own rows of dL/dX, backward ◄────────┘      then: sum of tower gradients

So the losses see the whole batch (no loss averaged over shards, no batch-wise statistic cut), the result is that of one
process up to the order of a sum, and the pooler's and the proxies' gradients, computed by every rank, are taken from
rank 0: the ranks stay equal to the bit, whatever their devices round.

Who waits for whom: ranks wait for each other in collectives only, for at most the group's timeout; a rank that dies
ends the others' wait at once. Whoever drives them must send every collective call to all ranks, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from saga_dist.errors import LearnerLost

BUCKET_ELEMENTS = 1 << 24
"""Gradients that travel in one piece, float32: 64 MiB."""


class PeerLost(LearnerLost):
    """Another rank did not take part in a collective; why, that rank itself knows best."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """One rank's view of the learner's processes; ``ALONE`` is the learner of one process, for which nothing moves."""

    rank: int = 0
    size: int = 1

    def share(self, number: int, rank: int | None = None) -> slice:
        """Returns the contiguous share of ``number`` things that a rank has (this one, if not said)."""
        rank = self.rank if rank is None else rank
        return slice(number * rank // self.size, number * (rank + 1) // self.size)

    def gather_rows(self, own_RW: torch.Tensor) -> torch.Tensor:
        """Returns the rows of all ranks, rank 0's first; the gradient reaches this rank's own rows only.

        Args:
            own_RW: [R, W], any dtype, equal on all ranks; R may differ, and be 0.
        """
        if self.size == 1:
            return own_RW
        counts = self._gather_counts(len(own_RW), own_RW.device)
        gathered: torch.Tensor = _GatherRows.apply(own_RW, self, counts)
        return gathered

    def sum_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        """Adds up the gradients of all ranks in place; every rank has them for the same parameters."""
        for bucket in _buckets(parameters, self.size):
            flat = torch.cat([gradient.flatten().float() for gradient in bucket])
            with _collective():
                dist.all_reduce(flat)
            _unpack(flat, bucket)

    def adopt_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        """Replaces the gradients, computed by every rank, with rank 0's."""
        for bucket in _buckets(parameters, self.size):
            flat = torch.cat([gradient.flatten().float() for gradient in bucket])
            with _collective():
                dist.broadcast(flat, src=0)
            _unpack(flat, bucket)

    def adopt_weights(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces tensors with rank 0's: all ranks start equal, wherever each of them read its files."""
        if self.size == 1:
            return
        with torch.no_grad(), _collective():
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def all_rows(self, own_RW: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Returns ``gather_rows`` without a graph, for known row counts. The bits travel, whatever they mean."""
        padded = own_RW.new_zeros(max(counts), own_RW.shape[1])
        padded[: len(own_RW)] = own_RW
        received = [torch.empty_like(padded) for _ in counts]
        with _collective():
            dist.all_gather([rows.view(torch.uint8) for rows in received], padded.view(torch.uint8))
        return torch.cat([rows[:count] for rows, count in zip(received, counts, strict=True)])

    def _gather_counts(self, count: int, device: torch.device) -> list[int]:
        own = torch.tensor([count], device=device)
        counts = [torch.zeros_like(own) for _ in range(self.size)]
        with _collective():
            dist.all_gather(counts, own)
        return [int(each) for each in counts]


ALONE = Ranks()
"""A learner of one process."""


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks, of which only the own ones have a past."""

    @staticmethod
    def forward(ctx: Any, own_RW: torch.Tensor, ranks: Ranks, counts: list[int]) -> torch.Tensor:
        start = sum(counts[: ranks.rank])
        ctx.own = slice(start, start + len(own_RW))
        return ranks.all_rows(own_RW.detach(), counts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient_RW,) = gradients
        return gradient_RW[ctx.own], None, None


# ---------------------------------------------------------------------- coming together


def open_store(host: str, *, size: int, timeout_s: float) -> dist.TCPStore:
    """Returns the meeting point of the ranks, served by this process on a free port (``store.port``) of ``host``."""
    return dist.TCPStore(host, 0, size, is_master=True, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)


def join_store(host: str, port: int, *, size: int, timeout_s: float) -> dist.TCPStore:
    """Returns the meeting point that another process serves."""
    with _collective():
        return dist.TCPStore(
            host, port, size, is_master=False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False
        )


def join(store: dist.TCPStore, *, rank: int, size: int, device: torch.device, timeout_s: float) -> Ranks:
    """Returns this process's view of the ranks once all of them are there: NCCL between GPUs, Gloo otherwise.

    Args:
        store: the meeting point.
        rank: from 0; the one that publishes, saves and answers.
        size: how many ranks.
        device: of the learner's weights.
        timeout_s: longest wait of a collective, and for the others to come.

    Raises:
        PeerLost: they did not all come in time.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _collective():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )
    return Ranks(rank, size)


def leave() -> None:
    """Ends this process's membership, if it has one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _buckets(parameters: Sequence[torch.Tensor], size: int) -> list[list[torch.Tensor]]:
    """The gradients in pieces of about BUCKET_ELEMENTS; none when there is nobody to share them with."""
    buckets: list[list[torch.Tensor]] = []
    room = 0
    for gradient in [parameter.grad for parameter in parameters if parameter.grad is not None] if size > 1 else []:
        if gradient.numel() > room:
            buckets.append([])
            room = BUCKET_ELEMENTS
        buckets[-1].append(gradient)
        room -= gradient.numel()
    return buckets


def _unpack(flat: torch.Tensor, gradients: Sequence[torch.Tensor]) -> None:
    pieces = flat.split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))


@contextmanager
def _collective() -> Iterator[None]:
    """What torch.distributed raises, as one of ours."""
    try:
        yield
    except RuntimeError as error:  # DistError and its kin among them
        words = " ".join(str(error).split())[:200]
        raise PeerLost(
            f"another rank is gone or silent ({words})", where="learner", fix="the same command resumes"
        ) from error
