"""Registers a custom attention with transformers; the context passed to the decoder computes each layer's attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, PreTrainedConfig

_NAME = "saga_dist"
"""Name of the attention in transformers' registry."""


class StopForward(Exception):
    """Ends a forward pass of which only keys and values are needed; raised by a context, caught in the backbone."""


class AttentionContext(Protocol):
    """Computes the attention of every layer in one or several forward passes of a decoder."""

    def attend(
        self, layer: int, query_BHRd: torch.Tensor, key_BhRd: torch.Tensor, value_BhRd: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Stores the keys and values of new tokens in one layer; returns their attention output.

        Args:
            layer: index of the layer.
            query_BHRd: [B, H, R, d], queries of R tokens in B rows, after rotation.
            key_BhRd: [B, h, R, d], keys after rotation, for h key heads.
            value_BhRd: [B, h, R, d], values.
            scale: factor of the query-key products.

        Returns:
            [B, R, H, d], the attention output before the output projection.
        """


@contextmanager
def use_custom_attention(config: PreTrainedConfig) -> Iterator[None]:
    """Makes the decoder with this configuration use the argument ``attention_context`` of its calls.

    Within the context, transformers builds no attention mask.
    """
    previous = config._attn_implementation
    config._attn_implementation = _NAME  # every layer reads it in every forward pass
    try:
        yield
    finally:
        config._attn_implementation = previous


def _attend(
    module: torch.nn.Module,
    query_BHRd: torch.Tensor,
    key_BhRd: torch.Tensor,
    value_BhRd: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    attention_context: AttentionContext,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Passes transformers' call of a layer's attention on to the context."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    return attention_context.attend(layer, query_BHRd, key_BhRd, value_BhRd, scaling), None


AttentionInterface.register(_NAME, _attend)
