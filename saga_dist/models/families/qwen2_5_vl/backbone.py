"""The frozen language model of Qwen2.5-VL: a Qwen2.5 decoder, with biases and without norms on queries and keys."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding, Qwen2_5_VLTextModel

from saga_dist.models.families.decoder import MropeBackbone


class Qwen25VLBackbone(MropeBackbone):
    """Decoder and output layer of a Qwen2.5-VL."""

    model_class = Qwen2_5_VLTextModel
    rotary_class = Qwen2_5_VLRotaryEmbedding

    def _queries(self, attention: Any, hidden_RD: torch.Tensor) -> torch.Tensor:
        """Returns a layer's queries [R, H, d] before rotation; this family has no norm on queries."""
        return attention.q_proj(hidden_RD).unflatten(-1, (-1, attention.head_dim))
