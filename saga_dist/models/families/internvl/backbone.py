"""The frozen language model of InternVL3.5: a Qwen3 decoder that treats image tokens like text tokens."""

from __future__ import annotations

import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model, Qwen3RotaryEmbedding

from saga_dist.models.families.decoder import DecoderBackbone
from saga_dist.types import Grid


class InternVLBackbone(DecoderBackbone):
    """Decoder and output layer of a dense InternVL3.5."""

    model_class = Qwen3Model
    rotary_class = Qwen3RotaryEmbedding

    def _image_positions(self, grid: Grid) -> tuple[torch.Tensor, int]:
        """Returns consecutive positions, one per image token, as in text."""
        num_tokens = self.layout.num_tokens(grid)
        return self._text_positions(0, num_tokens), num_tokens
