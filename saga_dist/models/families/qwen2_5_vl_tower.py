"""The vision tower of Qwen2.5-VL: attention within windows, and over the whole image in a few layers.

Order of patches, windows and rotations are transformers' own; only equally long stretches are attended as one batch. A
224-pixel image has 2 x 2 windows of 64 patches, so that is the usual case in every layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionAttention,
    Qwen2_5_VLVisionRotaryEmbedding,
)

from saga_dist.models.families.qwen_vl_tower import EqualLengthAttention, LinearPatchEmbed, QwenVLTower, vision_layout
from saga_dist.models.weights import build_empty

if TYPE_CHECKING:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig


class _PatchEmbed(LinearPatchEmbed, Qwen2_5_VisionPatchEmbed):
    pass


class _Attention(EqualLengthAttention, Qwen2_5_VLVisionAttention):
    pass


class Qwen25VLTower(QwenVLTower):
    """Vision tower with merger; its tokens are D wide on the wire.

    Args:
        config: vision part of the checkpoint's configuration.
        preprocessing: path of ``preprocessor_config.json``.
        dtype: of the weights.
        device: where they are put; their values are not set.
    """

    family: ClassVar[str] = "qwen2_5_vl"

    def __init__(
        self, config: Qwen2_5_VLVisionConfig, preprocessing: Path, *, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        model = build_empty(
            lambda: Qwen2_5_VisionTransformerPretrainedModel._from_config(
                config, attn_implementation="sdpa", dtype=dtype
            ),
            device=device,
        )
        model.rotary_pos_emb = Qwen2_5_VLVisionRotaryEmbedding(config).to(device)
        # The parts keep their weights and names; only the way they compute changes.
        model.patch_embed.__class__ = _PatchEmbed
        for block in model.blocks:
            block.attn.__class__ = _Attention
        super().__init__(model, vision_layout(config), preprocessing)
