"""Attention of several sequences on one shared prefix: no copy of the prefix, no mask, no padding.

    softmax over [prefix | own]  =  attention to the prefix and attention to one's own, weighed by their log-sum-exp

All sequences' queries, of all heads that share a key head, meet the prefix in one rectangle; each sequence meets its
own tokens causally. Backward, either part needs only the whole's output and log-sum-exp (its weights are
exp(score - log-sum-exp)), so the two gradients add up to the exact one. Both parts are torch's flash kernel for CPUs.

Floor, per layer with H heads of width d, R own tokens, prefix P, sequences of T: 14 * H * d * R * (P + T / 2)
operations forward and backward. The rectangle runs at the rate of matrix products, the causal part at about half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch

from saga_dist.models.families.base import AttentionProbe, attention_rows
from saga_dist.models.families.key_values import KeyValues

# Not part of torch's public interface, which gives no log-sum-exp: another version may lack them.
_flash: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_flash_backward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
AVAILABLE = _flash is not None and _flash_backward is not None
"""True where this torch has the kernel; without it, groups are padded."""


class StopForward(Exception):
    """Ends a forward pass of which only keys and values are needed; raised and caught within the backbone."""


@dataclass(slots=True)
class PackedContext:
    """One pass of the decoder over packed sequences; an ``AttentionContext``."""

    past: KeyValues | None
    """Keys and values of the prefix that all sequences share, batch size 1; None without one."""
    lengths: Sequence[int]
    """Tokens of each sequence, in order; they add up to the pass's tokens."""
    probe_layer: int | None = None
    num_layers: int | None = None
    """Layers after which the pass ends with ``StopForward``, where only keys and values are needed; None runs all."""
    own: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Keys (after rotation) and values of each layer, [1, H_kv, R, d]."""
    probe: AttentionProbe | None = None

    def attend(
        self, layer: int, query_1HRd: torch.Tensor, key_1hRd: torch.Tensor, value_1hRd: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Returns the attention's output [1, R, H, d] of one layer."""
        self.own.append((key_1hRd, value_1hRd))
        if len(self.own) == self.num_layers:
            raise StopForward
        prefix = (None, None) if self.past is None else tuple(part[0] for part in self.past[layer])
        if layer == self.probe_layer:
            self.probe = _PackedProbe(
                query_1HRd[0].detach(), None if prefix[0] is None else prefix[0].detach(), key_1hRd[0].detach(),
                self.lengths, scale,
            )  # fmt: skip
        out_hnRd = _SharedPrefixAttention.apply(
            query_1HRd[0].unflatten(0, (key_1hRd.shape[1], -1)),
            key_1hRd[0],
            value_1hRd[0],
            *prefix,
            self.lengths,
            scale,
        )
        return out_hnRd.permute(2, 0, 1, 3).flatten(1, 2)[None]

    def key_values(self) -> KeyValues:
        """Returns keys and values of prefix and own tokens; for a single sequence."""
        if self.past is None:
            return tuple(self.own)
        return tuple(
            (torch.cat([past[0], own[0]], dim=2), torch.cat([past[1], own[1]], dim=2))
            for past, own in zip(self.past, self.own, strict=True)
        )


class _SharedPrefixAttention(torch.autograd.Function):
    """Queries [h, n, R, d] (n heads to a key head) on prefix [h, P, d] and own [h, R, d] keys and values."""

    @staticmethod
    def forward(
        ctx: Any,
        query_hnRd: torch.Tensor,
        key_hRd: torch.Tensor,
        value_hRd: torch.Tensor,
        prefix_key_hPd: torch.Tensor | None,
        prefix_value_hPd: torch.Tensor | None,
        lengths: Sequence[int],
        scale: float,
    ) -> torch.Tensor:
        parts = [
            _flash(*_shared(query_hnRd[:, :, own], key_hRd[:, own], value_hRd[:, own]), 0.0, True, scale=scale)
            for own in _spans(lengths)
        ]
        out_hnRd, lse_hnR = _joined(parts)
        if prefix_key_hPd is not None and prefix_value_hPd is not None:
            whole = _shared(query_hnRd, prefix_key_hPd, prefix_value_hPd)
            prefix_out_hnRd, prefix_lse_hnR = _flash(*whole, 0.0, False, scale=scale)
            both_hnR = torch.logaddexp(lse_hnR, prefix_lse_hnR)
            share_hnR1 = (prefix_lse_hnR - both_hnR).exp_()[..., None]
            out_hnRd = out_hnRd.float().lerp_(prefix_out_hnRd.float(), share_hnR1).to(query_hnRd.dtype)
            lse_hnR = both_hnR
        ctx.save_for_backward(query_hnRd, key_hRd, value_hRd, prefix_key_hPd, prefix_value_hPd, out_hnRd, lse_hnR)
        ctx.lengths, ctx.scale = lengths, scale
        return out_hnRd

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, prefix_key, prefix_value, out, lse = ctx.saved_tensors
        (gradient,) = gradients
        needed = ctx.needs_input_grad
        query_grad = key_grad = value_grad = prefix_key_grad = prefix_value_grad = None
        if prefix_key is not None:
            whole = _shared(query, prefix_key, prefix_value)
            query_grad, prefix_key_grad, prefix_value_grad = _flash_backward(
                gradient, *whole, out, lse, 0.0, False, scale=ctx.scale
            )
            prefix_key_grad, prefix_value_grad = prefix_key_grad.sum(1), prefix_value_grad.sum(1)
        if any(needed[:3]):  # of the first layer's own tokens nothing is wanted: text has no gradient
            parts = [
                _flash_backward(
                    gradient[:, :, own], *_shared(query[:, :, own], key[:, own], value[:, own]),
                    out[:, :, own], lse[:, :, own], 0.0, True, scale=ctx.scale,
                )
                for own in _spans(ctx.lengths)
            ]  # fmt: skip
            own_query_grad, key_grad, value_grad = _joined(parts)
            query_grad = own_query_grad if query_grad is None else query_grad.add_(own_query_grad)
            key_grad, value_grad = key_grad.sum(1), value_grad.sum(1)
        return query_grad, key_grad, value_grad, prefix_key_grad, prefix_value_grad, None, None


class _PackedProbe(AttentionProbe):
    """Queries and keys of one layer as its attention got them."""

    def __init__(
        self,
        query_HRd: torch.Tensor,
        prefix_hPd: torch.Tensor | None,
        key_hRd: torch.Tensor,
        lengths: Sequence[int],
        scale: float,
    ) -> None:
        self._query_HRd, self._prefix_hPd, self._key_hRd = query_HRd, prefix_hPd, key_hRd
        self._spans, self._scale = _spans(lengths), scale

    @torch.no_grad()
    def rows(self, completion: int, columns: torch.Tensor) -> torch.Tensor:
        """Returns attention [R, prefix + T] float32 from the chosen tokens: full causal softmax, mean over heads."""
        own = self._spans[completion]
        keys_hKd = self._key_hRd[:, own]
        if self._prefix_hPd is not None:
            keys_hKd = torch.cat([self._prefix_hPd, keys_hKd], dim=1)
        query_HRd = self._query_HRd[:, own][:, columns]
        keys_HKd = keys_hKd.repeat_interleave(len(query_HRd) // len(keys_hKd), dim=0)
        positions_R = keys_hKd.shape[1] - (own.stop - own.start) + columns
        return attention_rows(query_HRd, keys_HKd, positions_R, self._scale)


def _spans(lengths: Sequence[int]) -> list[slice]:
    return [slice(stop - length, stop) for length, stop in zip(lengths, accumulate(lengths), strict=True)]


def _joined(parts: Sequence[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """The parts' tensors, one behind the other in the token dimension."""
    return parts[0] if len(parts) == 1 else tuple(torch.cat(part, dim=2) for part in zip(*parts, strict=True))


def _shared(
    query_hnRd: torch.Tensor, key_hKd: torch.Tensor, value_hKd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Key heads as the batch, each seen by its n query heads without a copy."""
    heads = query_hnRd.shape[1]
    return query_hnRd, key_hKd[:, None].expand(-1, heads, -1, -1), value_hKd[:, None].expand(-1, heads, -1, -1)
