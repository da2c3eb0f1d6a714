"""Attention of several packed sequences on one shared prefix, without a copy of the prefix, a mask, or padding.

    softmax over [prefix | own]  =  attention to the prefix and attention to own tokens, weighted by their log-sum-exp

The attention to the prefix is one non-causal call for the queries of all sequences and of all heads that share a key
head. The attention of each sequence to its own tokens is causal. In the backward pass, each part needs only output and
log-sum-exp of the whole softmax (the attention weights are exp(score - log-sum-exp)), so the gradients of the two parts
add up to the exact gradient. ``attention_backends`` has the kernels of both parts.

Lower bound per layer, with H heads of width d, R own tokens, a prefix of P tokens and sequences of T tokens:
14 * H * d * R * (P + T / 2) operations, forward and backward. The prefix part runs at the rate of matrix products, the
causal part at about half of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from saga_dist.models.families.attention_backends import AttentionBackend, Segments
from saga_dist.models.families.base import AttentionProbe, attention_rows
from saga_dist.models.families.custom_attention import StopForward
from saga_dist.models.families.key_values import KeyValues


@dataclass
class PackedContext:
    """One forward pass of the decoder over packed sequences; an ``AttentionContext``."""

    past: KeyValues | None
    """Keys and values of the prefix that all sequences share, batch size 1; None for no prefix."""
    lengths: Sequence[int]
    """Number of tokens of each sequence, in order; the sum is R, the tokens of the pass."""
    backend: AttentionBackend
    """Kernels of the attention."""
    probe_layer: int | None = None
    """Layer (from 0) whose queries and keys are stored in ``probe``; None for none."""
    num_layers: int | None = None
    """Number of layers after which the pass ends with ``StopForward``; None runs the pass to its end."""
    own: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Keys (after rotation) and values of the pass's tokens in each layer, [1, h, R, d] for h key heads."""
    probe: AttentionProbe | None = None
    """Attention of ``probe_layer``, after the pass."""

    def attend(
        self, layer: int, query_1HRd: torch.Tensor, key_1hRd: torch.Tensor, value_1hRd: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Returns the attention output [1, R, H, d] of one layer.

        Raises:
            StopForward: keys and values of all ``num_layers`` layers are stored.
        """
        self.own.append((key_1hRd, value_1hRd))
        if len(self.own) == self.num_layers:
            raise StopForward
        prefix = (None, None) if self.past is None else tuple(part[0] for part in self.past[layer])
        if layer == self.probe_layer:
            self.probe = _PackedProbe(
                query_1HRd[0].detach(), None if prefix[0] is None else prefix[0].detach(), key_1hRd[0].detach(),
                self._shape.own, scale,
            )  # fmt: skip
        out_hnRd = _SharedPrefixAttention.apply(
            query_1HRd[0].unflatten(0, (key_1hRd.shape[1], -1)),
            key_1hRd[0],
            value_1hRd[0],
            *prefix,
            self.backend,
            self._shape,
            scale,
        )
        return out_hnRd.permute(2, 0, 1, 3).flatten(1, 2)[None]

    def key_values(self) -> KeyValues:
        """Returns keys and values of the prefix and of the pass's tokens; valid for a single sequence."""
        if self.past is None:
            return tuple(self.own)
        return tuple(
            (torch.cat([past[0], own[0]], dim=2), torch.cat([past[1], own[1]], dim=2))
            for past, own in zip(self.past, self.own, strict=True)
        )

    @cached_property
    def _shape(self) -> _PackedShape:
        """Sequences of the pass, the same in all layers."""
        prefix = 0 if self.past is None else self.past[0][0].shape[2]
        return _PackedShape(Segments(self.lengths), Segments((sum(self.lengths),)), Segments((prefix,)))


@dataclass(frozen=True, slots=True)
class _PackedShape:
    """Sequences of the two parts of the attention."""

    own: Segments
    """The sequences, each of which attends to itself."""
    queries: Segments
    """The tokens of all sequences as one, which attends to the prefix."""
    prefix: Segments
    """The prefix."""


class _SharedPrefixAttention(torch.autograd.Function):
    """Attention of queries [h, n, R, d] to keys and values of the prefix [h, P, d] and of their own sequence [h, R, d].

    h is the number of key heads, n the number of query heads per key head.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_hnRd: torch.Tensor,
        key_hRd: torch.Tensor,
        value_hRd: torch.Tensor,
        prefix_key_hPd: torch.Tensor | None,
        prefix_value_hPd: torch.Tensor | None,
        backend: AttentionBackend,
        shape: _PackedShape,
        scale: float,
    ) -> torch.Tensor:
        out_hnRd, lse_hnR = backend.forward(
            query_hnRd, key_hRd, value_hRd, shape.own, shape.own, causal=True, scale=scale
        )
        if prefix_key_hPd is not None and prefix_value_hPd is not None:
            prefix_out_hnRd, prefix_lse_hnR = backend.forward(
                query_hnRd, prefix_key_hPd, prefix_value_hPd, shape.queries, shape.prefix, causal=False, scale=scale
            )
            total_lse_hnR = torch.logaddexp(lse_hnR, prefix_lse_hnR)
            share_hnR1 = (prefix_lse_hnR - total_lse_hnR).exp_()[..., None]
            out_hnRd = out_hnRd.float().lerp_(prefix_out_hnRd.float(), share_hnR1).to(query_hnRd.dtype)
            lse_hnR = total_lse_hnR
        ctx.save_for_backward(query_hnRd, key_hRd, value_hRd, prefix_key_hPd, prefix_value_hPd, out_hnRd, lse_hnR)
        ctx.backend, ctx.shape, ctx.scale = backend, shape, scale
        return out_hnRd

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, prefix_key, prefix_value, *attended = ctx.saved_tensors
        (gradient,) = gradients
        backend, shape, needed = ctx.backend, ctx.shape, ctx.needs_input_grad
        query_grad = key_grad = value_grad = prefix_key_grad = prefix_value_grad = None
        if prefix_key is not None:
            query_grad, prefix_key_grad, prefix_value_grad = backend.backward(
                gradient, query, prefix_key, prefix_value, attended, shape.queries, shape.prefix,
                causal=False, scale=ctx.scale,
            )  # fmt: skip
        if any(needed[:3]):  # False in the first layer over text tokens, whose embeddings need no gradient
            own_query_grad, key_grad, value_grad = backend.backward(
                gradient, query, key, value, attended, shape.own, shape.own, causal=True, scale=ctx.scale
            )
            query_grad = own_query_grad if query_grad is None else query_grad.add_(own_query_grad)
        return query_grad, key_grad, value_grad, prefix_key_grad, prefix_value_grad, None, None, None


class _PackedProbe(AttentionProbe):
    """Stores the queries and keys of one layer's attention."""

    def __init__(
        self,
        query_HRd: torch.Tensor,
        prefix_hPd: torch.Tensor | None,
        key_hRd: torch.Tensor,
        own: Segments,
        scale: float,
    ) -> None:
        self._query_HRd, self._prefix_hPd, self._key_hRd = query_HRd, prefix_hPd, key_hRd
        self._spans, self._scale = own.spans, scale

    @torch.no_grad()
    def rows(self, completion: int, columns: torch.Tensor) -> torch.Tensor:
        """Returns rows of attention, float32 [R, prefix + T]: full causal softmax, mean over heads."""
        own = self._spans[completion]
        keys_hKd = self._key_hRd[:, own]
        if self._prefix_hPd is not None:
            keys_hKd = torch.cat([self._prefix_hPd, keys_hKd], dim=1)
        first = keys_hKd.shape[1] - (own.stop - own.start)
        return attention_rows(self._query_HRd[:, own], keys_hKd, columns, first, self._scale)
