"""A custom attention registered with transformers: the context passed to the decoder computes each layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, PreTrainedConfig

_NAME = "saga_dist"
"""Name of this attention among those of transformers."""


class AttentionContext(Protocol):
    """Computes the attention of every layer in one or more passes of a decoder."""

    def attend(
        self, layer: int, query_BHRd: torch.Tensor, key_BhRd: torch.Tensor, value_BhRd: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Stores new tokens' keys and values in one layer; returns the attention output of the tokens, [B, R, H, d]."""


@contextmanager
def use_custom_attention(config: PreTrainedConfig) -> Iterator[None]:
    """Switches the decoder of this configuration to the ``attention_context`` among its call's arguments.

    transformers then makes no attention mask.
    """
    usual = config._attn_implementation
    config._attn_implementation = _NAME  # read by every layer in every pass
    try:
        yield
    finally:
        config._attn_implementation = usual


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
    """Forwards the call that transformers makes in every layer."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    return attention_context.attend(layer, query_BHRd, key_BhRd, value_BhRd, scaling), None


AttentionInterface.register(_NAME, _attend)
