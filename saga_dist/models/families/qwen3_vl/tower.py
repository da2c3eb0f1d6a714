"""The vision tower of Qwen3-VL: full attention, merger and DeepStack mergers."""

from __future__ import annotations

from transformers.models.qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionAttention,
    Qwen3VLVisionModel,
    Qwen3VLVisionPatchEmbed,
    Qwen3VLVisionRotaryEmbedding,
)

from saga_dist.models.families.qwen_vl.tower import EqualLengthAttention, LinearPatchEmbed, QwenVLTower


class Qwen3VLPatchEmbed(LinearPatchEmbed, Qwen3VLVisionPatchEmbed):
    """Qwen3-VL's patch embedding as a matrix product."""


class Qwen3VLAttention(EqualLengthAttention, Qwen3VLVisionAttention):
    """Qwen3-VL's vision attention, batched over images of one size."""


class Qwen3VLTower(QwenVLTower):
    """Vision tower with merger and DeepStack mergers."""

    family = "qwen3_vl"
    config_class = Qwen3VLVisionConfig
    model_class = Qwen3VLVisionModel
    rotary_class = Qwen3VLVisionRotaryEmbedding
    patch_embed_class = Qwen3VLPatchEmbed
    attention_class = Qwen3VLAttention
