"""The vision tower of Qwen3-VL: full attention, merger and DeepStack mergers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionAttention,
    Qwen3VLVisionModel,
    Qwen3VLVisionPatchEmbed,
    Qwen3VLVisionRotaryEmbedding,
)

from saga_dist.models.families.qwen_vl_tower import EqualLengthAttention, LinearPatchEmbed, QwenVLTower, vision_layout
from saga_dist.models.weights import build_empty

if TYPE_CHECKING:
    from transformers.models.qwen3_vl import Qwen3VLVisionConfig


class _PatchEmbed(LinearPatchEmbed, Qwen3VLVisionPatchEmbed):
    pass


class _Attention(EqualLengthAttention, Qwen3VLVisionAttention):
    pass


class Qwen3VLTower(QwenVLTower):
    """Vision tower with merger and DeepStack mergers.

    Args:
        config: vision part of the checkpoint's configuration.
        preprocessing: path of ``preprocessor_config.json``.
        dtype: of the weights.
        device: where they are put; their values are not set.
    """

    family: ClassVar[str] = "qwen3_vl"

    def __init__(
        self, config: Qwen3VLVisionConfig, preprocessing: Path, *, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        model = build_empty(
            lambda: Qwen3VLVisionModel._from_config(config, attn_implementation="sdpa", dtype=dtype), device=device
        )
        model.rotary_pos_emb = Qwen3VLVisionRotaryEmbedding(config).to(device)
        # The parts keep their weights and names; only the way they compute changes.
        model.patch_embed.__class__ = _PatchEmbed
        for block in model.blocks:
            block.attn.__class__ = _Attention
        super().__init__(model, vision_layout(config), preprocessing)
