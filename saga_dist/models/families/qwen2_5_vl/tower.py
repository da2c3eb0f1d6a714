"""The vision tower of Qwen2.5-VL: attention within windows, and over the whole image in a few layers.

Order of patches, windows and rotations are those of transformers. Only the attention of sequences (windows or images)
of equal length is changed: it runs as one batch. A 224-pixel image has 2 x 2 windows of 64 patches each, so this is the
usual case in every layer.
"""

from __future__ import annotations

from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionAttention,
    Qwen2_5_VLVisionRotaryEmbedding,
)

from saga_dist.models.families.qwen_vl.tower import EqualLengthAttention, LinearPatchEmbed, QwenVLTower


class Qwen25VLPatchEmbed(LinearPatchEmbed, Qwen2_5_VisionPatchEmbed):
    """Qwen2.5-VL's patch embedding as a matrix product."""


class Qwen25VLAttention(EqualLengthAttention, Qwen2_5_VLVisionAttention):
    """Qwen2.5-VL's vision attention, batched over windows or images of one size."""


class Qwen25VLTower(QwenVLTower):
    """Vision tower with merger and without DeepStack; the width of its tokens on the wire is D."""

    family = "qwen2_5_vl"
    config_class = Qwen2_5_VLVisionConfig
    model_class = Qwen2_5_VisionTransformerPretrainedModel
    rotary_class = Qwen2_5_VLVisionRotaryEmbedding
    patch_embed_class = Qwen25VLPatchEmbed
    attention_class = Qwen25VLAttention
