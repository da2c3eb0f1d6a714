"""Qwen3-VL (2B, 4B, 8B, 32B): DeepStack tower, interleaved three-axis rotary positions, Qwen3 language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from saga_dist.data.prompts import QWEN_CHAT, ChatFormat
from saga_dist.models.families.qwen3_vl_backbone import Qwen3VLBackbone
from saga_dist.models.families.qwen3_vl_tower import Qwen3VLTower
from saga_dist.models.families.qwen_vl import QwenVLFamily

if TYPE_CHECKING:
    from transformers import Qwen3VLConfig


class Qwen3VLFamily(QwenVLFamily):
    """Dense Qwen3-VL checkpoints (``Qwen3VLForConditionalGeneration``)."""

    name: ClassVar[str] = Qwen3VLTower.family
    architecture: ClassVar[str] = "Qwen3VLForConditionalGeneration"
    chat_format: ClassVar[ChatFormat] = QWEN_CHAT

    @staticmethod
    def _config_class() -> type[Qwen3VLConfig]:
        from transformers import Qwen3VLConfig

        return Qwen3VLConfig

    def _empty_tower(self, *, dtype: torch.dtype, device: str | torch.device) -> Qwen3VLTower:
        preprocessing = self.files.file("preprocessor_config.json")
        return Qwen3VLTower(self._parsed.vision_config, preprocessing, dtype=dtype, device=device)

    def _empty_backbone(self, *, tied: bool, dtype: torch.dtype, device: str | torch.device) -> Qwen3VLBackbone:
        return Qwen3VLBackbone(self._parsed, self.layout, tied=tied, dtype=dtype, device=device)

    @classmethod
    def rebuild_tower(cls, description: dict[str, Any], folder: Path, *, dtype: torch.dtype) -> Qwen3VLTower:
        """Returns a tower from ``Qwen3VLTower.describe`` and preprocessing files, its weights not yet set."""
        from transformers.models.qwen3_vl import Qwen3VLVisionConfig

        config = Qwen3VLVisionConfig.from_dict(description)
        return Qwen3VLTower(config, folder / "preprocessor_config.json", dtype=dtype, device="cpu")
