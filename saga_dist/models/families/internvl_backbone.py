"""The language model of InternVL3.5, frozen: a Qwen3 decoder that sees image tokens as it sees text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model, Qwen3RotaryEmbedding

from saga_dist.models.families.base import TokenLayout
from saga_dist.models.families.decoder import DecoderBackbone
from saga_dist.models.weights import build_empty
from saga_dist.types import Grid

if TYPE_CHECKING:
    from transformers import InternVLConfig


class InternVLBackbone(DecoderBackbone):
    """Decoder and output layer of a dense InternVL3.5.

    Args:
        config: the whole checkpoint's configuration.
        layout: sizes of the encoder tokens.
        tied: whether the output layer is the transposed embedding table.
        dtype: of the weights.
        device: where they are put; their values are not set.
    """

    def __init__(
        self, config: InternVLConfig, layout: TokenLayout, *, tied: bool, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        text = config.text_config
        model = build_empty(
            lambda: Qwen3Model._from_config(text, attn_implementation="sdpa", dtype=dtype), device=device
        )
        model.rotary_emb = Qwen3RotaryEmbedding(config=text).to(device)
        super().__init__(model, text, layout, image_token_id=config.image_token_id, tied=tied, dtype=dtype)

    def _image_positions(self, grid: Grid) -> tuple[torch.Tensor, int]:
        """Image tokens count on like text."""
        num_tokens = self.layout.num_tokens(grid)
        return self._text_positions(0, num_tokens), num_tokens

    def _queries(self, attention: Any, hidden_RD: torch.Tensor) -> torch.Tensor:
        return attention.q_norm(attention.q_proj(hidden_RD).unflatten(-1, (-1, attention.head_dim)))
