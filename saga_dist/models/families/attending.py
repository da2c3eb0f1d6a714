"""Attention of our own inside a decoder of transformers: whoever reads says in every layer what its tokens see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import AttentionInterface, PreTrainedConfig

_NAME = "saga_dist"
"""Of this attention among those of transformers."""


class Reader(Protocol):
    """One pass, or a row of passes, of a decoder."""

    def attend(
        self, layer: int, query_BHRd: torch.Tensor, key_BhRd: torch.Tensor, value_BhRd: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Takes new tokens' keys and values into one layer; returns what the tokens see there, [B, R, H, d]."""


@contextmanager
def attention_of_readers(config: PreTrainedConfig) -> Iterator[None]:
    """Has the decoder of this configuration ask the ``reader`` among its arguments; transformers then makes no mask."""
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
    reader: Reader,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in every layer."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    return reader.attend(layer, query_BHRd, key_BhRd, value_BhRd, scaling), None


AttentionInterface.register(_NAME, _attend)
