"""Attention of padded rows on one shared prefix, for devices and dtypes without a kernel of packed attention.

The causal mask is a statement to the kernel and not a tensor: flash and memory-efficient attention then run, which
refuse explicit masks or are slow with them. Keys and values of the prefix are copied once for each row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from saga_dist.models.families.base import AttentionProbe, attention_rows
from saga_dist.models.families.custom_attention import StopForward
from saga_dist.models.families.key_values import KeyValues


@dataclass
class PaddedContext:
    """One forward pass of the decoder over rows of equal length; an ``AttentionContext``."""

    past: KeyValues | None
    """Keys and values of the prefix, with batch size 1 (shared by all rows) or that of the rows; None for no prefix."""
    probe_layer: int | None = None
    """Layer (from 0) whose queries and keys are stored in ``probe``; None for none."""
    num_layers: int | None = None
    """Number of layers after which the pass ends with ``StopForward``; None runs it to its end and stores nothing."""
    stored: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Keys and values of prefix and pass in each layer, [B, h, K, d] for h key heads."""
    probe: AttentionProbe | None = None
    """Attention of ``probe_layer``, after the pass."""

    def attend(
        self, layer: int, query_BHTd: torch.Tensor, key_BhTd: torch.Tensor, value_BhTd: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Returns the attention output [B, T, H, d] of one layer.

        Raises:
            StopForward: keys and values of all ``num_layers`` layers are stored.
        """
        keys_BhKd, values_BhKd = key_BhTd, value_BhTd
        if self.past is not None:
            keys_BhKd, values_BhKd = (
                torch.cat([past.expand(len(own), -1, -1, -1), own], dim=2)
                for past, own in zip(self.past[layer], (key_BhTd, value_BhTd), strict=True)
            )
        if self.num_layers is not None:
            self.stored.append((keys_BhKd, values_BhKd))
            if len(self.stored) == self.num_layers:
                raise StopForward
        if layer == self.probe_layer:
            self.probe = _PaddedProbe(query_BHTd.detach(), keys_BhKd.detach(), scale)
        return _causal_attention(query_BHTd, keys_BhKd, values_BhKd, scale).transpose(1, 2)

    def key_values(self) -> KeyValues:
        """Returns keys and values of the prefix and of the pass's tokens, after a pass with ``num_layers``."""
        return tuple(self.stored)


class _PaddedProbe(AttentionProbe):
    """Stores the queries and keys of one layer's attention."""

    def __init__(self, query_BHTd: torch.Tensor, keys_BhKd: torch.Tensor, scale: float) -> None:
        self._query_BHTd, self._keys_BhKd, self._scale = query_BHTd, keys_BhKd, scale

    @torch.no_grad()
    def rows(self, completion: int, columns: torch.Tensor) -> torch.Tensor:
        """Returns rows of attention, float32 [R, prefix + T]: full causal softmax, mean over heads."""
        query_HTd, keys_hKd = self._query_BHTd[completion], self._keys_BhKd[completion]
        return attention_rows(query_HTd, keys_hKd, columns, keys_hKd.shape[1] - query_HTd.shape[1], self._scale)


def _causal_attention(
    query_BHTd: torch.Tensor, keys_BhKd: torch.Tensor, values_BhKd: torch.Tensor, scale: float
) -> torch.Tensor:
    """Returns the attention [B, H, T, d] of the last T of K positions to all positions up to their own."""
    num_queries, num_keys = query_BHTd.shape[2], keys_BhKd.shape[2]
    shared = query_BHTd.shape[1] // keys_BhKd.shape[1]
    grouped = SDPAParams(query_BHTd, keys_BhKd, values_BhKd, None, 0.0, num_queries > 1, True)
    if shared > 1 and not can_use_flash_attention(grouped):  # no other kernel but the slowest takes shared key heads
        keys_BhKd, values_BhKd = (part.repeat_interleave(shared, dim=1) for part in (keys_BhKd, values_BhKd))
    return scaled_dot_product_attention(
        query_BHTd, keys_BhKd, values_BhKd, attn_mask=causal_lower_right(num_queries, num_keys), scale=scale,
        enable_gqa=True,
    )  # fmt: skip
