"""Kernels of packed attention: torch's flash attention for CPUs, and its variable-length flash attention for CUDA.

A backend computes attention together with its log-sum-exp, and the gradients from output and log-sum-exp. These two may
be those of a larger softmax that the keys are only a part of (``packed_attention``), which torch's public functions do
not allow. The operators called here are internal to torch, so a backend is only chosen where they exist.

Shapes: h key heads, n query heads for each of them, R queries, K keys, heads of width d.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

_cpu_flash: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_cpu_flash_backward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
_varlen_flash: Any = getattr(torch.ops.aten, "_flash_attention_forward", None)
_varlen_flash_backward: Any = getattr(torch.ops.aten, "_flash_attention_backward", None)

FLASH_CAPABILITY = (8, 0)
"""Lowest compute capability of a GPU that flash attention runs on (Ampere)."""
FLASH_DTYPES = (torch.bfloat16, torch.float16)
"""Dtypes of flash attention on CUDA."""
FLASH_WIDTH_MULTIPLE, FLASH_LARGEST_WIDTH = 8, 256
"""Head widths of flash attention on CUDA: multiples of the first up to the second."""

Attended = tuple[torch.Tensor, torch.Tensor]
"""Attention output [h, n, R, d] in the dtype of the queries, and float32 log-sum-exp of the scores [h, n, R]."""
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Gradients of queries [h, n, R, d], keys [h, K, d] and values [h, K, d]."""


class Segments:
    """Lengths of sequences that are concatenated in one row of tokens.

    Args:
        lengths: number of tokens of each sequence.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        self._offsets: dict[torch.device, torch.Tensor] = {}

    @property
    def total(self) -> int:
        """Number of tokens in the row."""
        return sum(self.lengths)

    @property
    def spans(self) -> list[slice]:
        """Positions of each sequence in the row."""
        return [slice(stop - length, stop) for length, stop in zip(self.lengths, accumulate(self.lengths), strict=True)]

    def offsets(self, device: torch.device) -> torch.Tensor:
        """Returns int32 [number of sequences + 1]: the start of each sequence, then the total; copied once a device."""
        if device not in self._offsets:
            starts = [0, *accumulate(self.lengths)]
            self._offsets[device] = torch.tensor(starts, dtype=torch.int32, device=device)
        return self._offsets[device]


class AttentionBackend(ABC):
    """Attention of each sequence of queries to the sequence of keys with the same index."""

    @abstractmethod
    def forward(
        self,
        query_hnRd: torch.Tensor,
        key_hKd: torch.Tensor,
        value_hKd: torch.Tensor,
        queries: Segments,
        keys: Segments,
        *,
        causal: bool,
        scale: float,
    ) -> Attended:
        """Returns the attention output and the log-sum-exp of the scores.

        Args:
            query_hnRd: [h, n, R, d].
            key_hKd: [h, K, d].
            value_hKd: [h, K, d].
            queries: sequences of the R queries.
            keys: sequences of the K keys, as many as of queries.
            causal: True when a query sees no key after its own; the sequences of queries and keys are then the same.
            scale: factor of the query-key products.
        """

    @abstractmethod
    def backward(
        self,
        gradient_hnRd: torch.Tensor,
        query_hnRd: torch.Tensor,
        key_hKd: torch.Tensor,
        value_hKd: torch.Tensor,
        attended: Attended,
        queries: Segments,
        keys: Segments,
        *,
        causal: bool,
        scale: float,
    ) -> Gradients:
        """Returns the gradients of queries, keys and values.

        Args:
            gradient_hnRd: [h, n, R, d], gradient of the output.
            query_hnRd: as in ``forward``.
            key_hKd: as in ``forward``.
            value_hKd: as in ``forward``.
            attended: output and log-sum-exp of the whole softmax, of which the scores of these keys may be a part.
            queries: as in ``forward``.
            keys: as in ``forward``.
            causal: as in ``forward``.
            scale: as in ``forward``.
        """


class CpuFlash(AttentionBackend):
    """Torch's flash attention for CPUs, called once for each sequence."""

    def forward(
        self,
        query_hnRd: torch.Tensor,
        key_hKd: torch.Tensor,
        value_hKd: torch.Tensor,
        queries: Segments,
        keys: Segments,
        *,
        causal: bool,
        scale: float,
    ) -> Attended:
        """Returns the attention output and the log-sum-exp of the scores."""
        parts = [
            _cpu_flash(*_expand_keys(query_hnRd[:, :, own], key_hKd[:, to], value_hKd[:, to]), 0.0, causal, scale=scale)
            for own, to in zip(queries.spans, keys.spans, strict=True)
        ]
        out_hnRd, lse_hnR = _concatenate(parts)
        return out_hnRd, lse_hnR

    def backward(
        self,
        gradient_hnRd: torch.Tensor,
        query_hnRd: torch.Tensor,
        key_hKd: torch.Tensor,
        value_hKd: torch.Tensor,
        attended: Attended,
        queries: Segments,
        keys: Segments,
        *,
        causal: bool,
        scale: float,
    ) -> Gradients:
        """Returns the gradients of queries, keys and values."""
        out_hnRd, lse_hnR = attended
        parts = [
            _cpu_flash_backward(
                gradient_hnRd[:, :, own], *_expand_keys(query_hnRd[:, :, own], key_hKd[:, to], value_hKd[:, to]),
                out_hnRd[:, :, own], lse_hnR[:, :, own], 0.0, causal, scale=scale,
            )
            for own, to in zip(queries.spans, keys.spans, strict=True)
        ]  # fmt: skip
        query_grad_hnRd, key_grad_hnKd, value_grad_hnKd = _concatenate(parts)
        return query_grad_hnRd, key_grad_hnKd.sum(1), value_grad_hnKd.sum(1)


class VarlenFlash(AttentionBackend):
    """Torch's variable-length flash attention for CUDA: one kernel for all sequences, key heads shared by queries.

    The kernel takes [tokens, heads, d] with a contiguous d and any other strides, so transposed views need no copy.
    """

    def forward(
        self,
        query_hnRd: torch.Tensor,
        key_hKd: torch.Tensor,
        value_hKd: torch.Tensor,
        queries: Segments,
        keys: Segments,
        *,
        causal: bool,
        scale: float,
    ) -> Attended:
        """Returns the attention output and the log-sum-exp of the scores."""
        out_RHd, lse_HR, *_ = _varlen_flash(
            _tokens_first(query_hnRd.flatten(0, 1)), _tokens_first(key_hKd), _tokens_first(value_hKd),
            *_sequence_arguments(queries, keys, query_hnRd.device), 0.0, causal, False, scale=scale,
        )  # fmt: skip
        heads = query_hnRd.shape[:2]
        return out_RHd.transpose(0, 1).unflatten(0, heads), lse_HR.unflatten(0, heads)

    def backward(
        self,
        gradient_hnRd: torch.Tensor,
        query_hnRd: torch.Tensor,
        key_hKd: torch.Tensor,
        value_hKd: torch.Tensor,
        attended: Attended,
        queries: Segments,
        keys: Segments,
        *,
        causal: bool,
        scale: float,
    ) -> Gradients:
        """Returns the gradients of queries, keys and values."""
        out_hnRd, lse_hnR = attended
        # The state of the random generator is read with dropout only.
        no_state, unused = query_hnRd.new_zeros(2, dtype=torch.uint64), query_hnRd.new_empty(0)
        query_grad_RHd, key_grad_Khd, value_grad_Khd = _varlen_flash_backward(
            *(_tokens_first(heads_nRd) for heads_nRd in (gradient_hnRd.flatten(0, 1), query_hnRd.flatten(0, 1))),
            _tokens_first(key_hKd), _tokens_first(value_hKd),
            _tokens_first(out_hnRd.flatten(0, 1)), lse_hnR.flatten(0, 1).contiguous(),
            *_sequence_arguments(queries, keys, query_hnRd.device), 0.0, causal, no_state, unused, scale=scale,
        )  # fmt: skip
        query_grad_hnRd = query_grad_RHd.transpose(0, 1).unflatten(0, query_hnRd.shape[:2])
        return query_grad_hnRd, key_grad_Khd.transpose(0, 1), value_grad_Khd.transpose(0, 1)


def find_backend(device: torch.device, dtype: torch.dtype, head_width: int) -> AttentionBackend | None:
    """Returns the backend of packed attention for tensors of this kind; None where there is none.

    Args:
        device: device of the queries.
        dtype: dtype of the queries.
        head_width: width of an attention head.
    """
    if device.type == "cpu" and _cpu_flash is not None and _cpu_flash_backward is not None:
        return CpuFlash()
    if device.type == "cuda" and _varlen_flash_takes(device, dtype, head_width):
        return VarlenFlash()
    return None


def _varlen_flash_takes(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Returns True when variable-length flash attention runs on this GPU with this dtype and head width."""
    exists = _varlen_flash is not None and _varlen_flash_backward is not None and torch.version.hip is None
    return (
        exists
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY
        and dtype in FLASH_DTYPES
        and head_width % FLASH_WIDTH_MULTIPLE == 0
        and head_width <= FLASH_LARGEST_WIDTH
    )


def _sequence_arguments(
    queries: Segments, keys: Segments, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Returns the offsets of queries and keys, and upper bounds of their lengths.

    The bound for queries is at least 2: for sequences of one query, torch takes a path of its own that exchanges heads
    and queries, and returns the log-sum-exp in another order.
    """
    longest = max(2, *queries.lengths), max(keys.lengths)
    return queries.offsets(device), keys.offsets(device), *longest


def _tokens_first(heads_HRd: torch.Tensor) -> torch.Tensor:
    """Returns [R, H, d] of [H, R, d], copied only where d is not contiguous."""
    tokens_RHd = heads_HRd.transpose(0, 1)
    return tokens_RHd if tokens_RHd.stride(-1) == 1 else tokens_RHd.contiguous()


def _concatenate(parts: Sequence[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """Returns the tensors of all parts, concatenated along the token dimension."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(part, dim=2) for part in zip(*parts, strict=True))


def _expand_keys(
    query_hnRd: torch.Tensor, key_hKd: torch.Tensor, value_hKd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the inputs of the CPU kernel, with each key head expanded to its n query heads without a copy."""
    heads = query_hnRd.shape[1]
    return query_hnRd, key_hKd[:, None].expand(-1, heads, -1, -1), value_hKd[:, None].expand(-1, heads, -1, -1)
