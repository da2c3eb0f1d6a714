"""Data parallelism over several learner processes, exact because the graph is cut at the encoder tokens.

Every rank holds the whole encoder and the same optimizer. Each rank runs the tower on its own share of a micro-batch's
images. The tokens of the other ranks are gathered as constants, so that every rank has the leaf of the whole batch:

    own images ──tower──► own rows ──gather──► X of the whole batch ──► pooler, L_DML, dL_GRPO/dX, L_KL: as one process
                              ▲                                              │
                              └──────── own rows of dL/dX, backward ◄────────┘      then: sum of tower gradients

So the losses are computed on the whole batch, never averaged over shards, and the result is that of one process up to
the order of a sum. Every rank computes the gradients of pooler and proxies; rank 0's are broadcast, so that the weights
of all ranks stay bit-identical even when their devices round differently.

Waiting: ranks wait for each other in collectives only, for at most the timeout of the process group; when a rank dies,
the collectives of the others fail at once. The caller must send every collective call to all ranks, in the same order.
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
"""Largest number of gradient elements in one collective; 64 MiB in float32."""


class PeerLost(LearnerLost):
    """A collective failed because another rank did not join it; the cause is in the error of that rank."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """One rank's view of the learner's processes; in ``ALONE``, the learner of one process, nothing is communicated."""

    rank: int = 0
    """Number of this process, 0 to ``size`` - 1."""
    size: int = 1
    """Number of processes."""

    def share(self, number: int, rank: int | None = None) -> slice:
        """Returns the contiguous share of ``number`` items that belongs to a rank.

        Args:
            number: number of items.
            rank: rank whose share is returned; None for this rank.
        """
        rank = self.rank if rank is None else rank
        return slice(number * rank // self.size, number * (rank + 1) // self.size)

    def gather_rows(self, own_RW: torch.Tensor) -> torch.Tensor:
        """Returns the rows of all ranks in the order of ranks; gradients flow to this rank's own rows only.

        Args:
            own_RW: [R, W], rows of this rank. W and dtype must be equal on all ranks; R may differ, and may be 0.
        """
        if self.size == 1:
            return own_RW
        counts = self._gather_counts(len(own_RW), own_RW.device)
        gathered: torch.Tensor = _GatherRows.apply(own_RW, self, counts)
        return gathered

    def sum_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        """Replaces every gradient with its sum over all ranks, which must have gradients for the same parameters."""
        for bucket in _buckets(parameters, self.size):
            flat = torch.cat([gradient.flatten().float() for gradient in bucket])
            with _collective():
                dist.all_reduce(flat)
            _unpack(flat, bucket)

    def broadcast_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        """Replaces the gradients, which every rank has computed, with those of rank 0."""
        for bucket in _buckets(parameters, self.size):
            flat = torch.cat([gradient.flatten().float() for gradient in bucket])
            with _collective():
                dist.broadcast(flat, src=0)
            _unpack(flat, bucket)

    def broadcast_weights(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces tensors with those of rank 0, so that all ranks start with the same weights."""
        if self.size == 1:
            return
        with torch.no_grad(), _collective():
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def all_rows(self, own_RW: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Returns the rows of all ranks without a graph.

        The rows are sent as bytes, whatever their dtype.

        Args:
            own_RW: [R, W], rows of this rank.
            counts: R of each rank.
        """
        padded = own_RW.new_zeros(max(counts), own_RW.shape[1])
        padded[: len(own_RW)] = own_RW
        received = [torch.empty_like(padded) for _ in counts]
        with _collective():
            dist.all_gather([rows.view(torch.uint8) for rows in received], padded.view(torch.uint8))
        return torch.cat([rows[:count] for rows, count in zip(received, counts, strict=True)])

    def _gather_counts(self, count: int, device: torch.device) -> list[int]:
        """Returns the ``count`` of every rank."""
        own = torch.tensor([count], device=device)
        counts = [torch.zeros_like(own) for _ in range(self.size)]
        with _collective():
            dist.all_gather(counts, own)
        return [int(each) for each in counts]


ALONE = Ranks()
"""The only rank of a learner of one process."""


class _GatherRows(torch.autograd.Function):
    """Gathers the rows of all ranks; only the rows of this rank are differentiable."""

    @staticmethod
    def forward(ctx: Any, own_RW: torch.Tensor, ranks: Ranks, counts: list[int]) -> torch.Tensor:
        start = sum(counts[: ranks.rank])
        ctx.own = slice(start, start + len(own_RW))
        return ranks.all_rows(own_RW.detach(), counts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient_RW,) = gradients
        return gradient_RW[ctx.own], None, None


# ---------------------------------------------------------------------- rendezvous


def open_store(host: str, *, size: int, timeout_s: float) -> dist.TCPStore:
    """Returns the rendezvous store of the ranks, served by this process on a free port (``store.port``) of ``host``.

    Args:
        host: address at which the other ranks reach this process.
        size: number of ranks.
        timeout_s: longest wait for a key of the store, seconds.
    """
    return dist.TCPStore(host, 0, size, is_master=True, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)


def join_store(host: str, port: int, *, size: int, timeout_s: float) -> dist.TCPStore:
    """Returns a client of the rendezvous store that another process serves.

    Args:
        host: address of that process.
        port: port of the store.
        size: number of ranks.
        timeout_s: longest wait for the connection and for a key of the store, seconds.

    Raises:
        PeerLost: the store cannot be reached.
    """
    with _collective():
        return dist.TCPStore(
            host, port, size, is_master=False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False
        )


def join(store: dist.TCPStore, *, rank: int, size: int, device: torch.device, timeout_s: float) -> Ranks:
    """Joins the process group of the learner, NCCL between GPUs and Gloo otherwise; returns this process's rank.

    Args:
        store: rendezvous store.
        rank: number of this process, from 0. Rank 0 publishes tokens, saves checkpoints and returns results.
        size: number of ranks.
        device: device of the learner's weights.
        timeout_s: longest wait for the other ranks to join, and of every collective, seconds.

    Raises:
        PeerLost: not all ranks joined in time.
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
    """Leaves the process group, if this process has joined one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _buckets(parameters: Sequence[torch.Tensor], size: int) -> list[list[torch.Tensor]]:
    """Returns the gradients in buckets of at most ``BUCKET_ELEMENTS`` (a larger tensor alone); none for one process."""
    if size == 1:
        return []
    buckets: list[list[torch.Tensor]] = []
    remaining = 0
    for gradient in [parameter.grad for parameter in parameters if parameter.grad is not None]:
        if gradient.numel() > remaining:
            buckets.append([])
            remaining = BUCKET_ELEMENTS
        buckets[-1].append(gradient)
        remaining -= gradient.numel()
    return buckets


def _unpack(flat: torch.Tensor, gradients: Sequence[torch.Tensor]) -> None:
    """Copies consecutive pieces of a flat tensor into the gradients."""
    pieces = flat.split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))


@contextmanager
def _collective() -> Iterator[None]:
    """Converts errors of torch.distributed within the context to ``PeerLost``."""
    try:
        yield
    except RuntimeError as error:  # DistError and its subclasses are RuntimeErrors
        reason = " ".join(str(error).split())[:200]
        raise PeerLost(
            f"another rank is gone or silent ({reason})", where="learner", fix="the same command resumes"
        ) from error
