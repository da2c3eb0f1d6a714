"""Qwen2.5-VL: window-attention tower without DeepStack, three-axis rotary positions, Qwen2.5 language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from saga_dist.data.prompts import ChatFormat
from saga_dist.models.families.qwen2_5_vl_backbone import Qwen25VLBackbone
from saga_dist.models.families.qwen2_5_vl_tower import Qwen25VLTower
from saga_dist.models.families.qwen_vl import QwenVLFamily
from saga_dist.models.model_files import ModelFiles

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLConfig

SYSTEM_TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
"""What the family's chat template puts first where the user has not."""


class Qwen25VLFamily(QwenVLFamily):
    """Qwen2.5-VL checkpoints (``Qwen2_5_VLForConditionalGeneration``): 3B, 7B, 32B, 72B."""

    name: ClassVar[str] = Qwen25VLTower.family
    architecture: ClassVar[str] = "Qwen2_5_VLForConditionalGeneration"
    chat_format: ClassVar[ChatFormat] = ChatFormat(
        f"{SYSTEM_TURN}<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    )
    # The released files have the decoder's tensors right below "model.".
    language_prefixes: ClassVar[dict[str, str]] = {
        **QwenVLFamily.language_prefixes,
        **{f"model.{part}.": f"language_model.{part}." for part in ("embed_tokens", "layers", "norm")},
    }

    def __init__(self, files: ModelFiles, config: dict[str, Any]) -> None:
        super().__init__(files, config)
        self._refuse_sliding_windows()

    @staticmethod
    def _config_class() -> type[Qwen2_5_VLConfig]:
        from transformers import Qwen2_5_VLConfig

        return Qwen2_5_VLConfig

    def _empty_tower(self, *, dtype: torch.dtype, device: str | torch.device) -> Qwen25VLTower:
        preprocessing = self.files.file("preprocessor_config.json")
        return Qwen25VLTower(self._parsed.vision_config, preprocessing, dtype=dtype, device=device)

    def _empty_backbone(self, *, tied: bool, dtype: torch.dtype, device: str | torch.device) -> Qwen25VLBackbone:
        return Qwen25VLBackbone(self._parsed, self.layout, tied=tied, dtype=dtype, device=device)

    @classmethod
    def rebuild_tower(cls, description: dict[str, Any], folder: Path, *, dtype: torch.dtype) -> Qwen25VLTower:
        """Returns a tower from ``Qwen25VLTower.describe`` and preprocessing files, its weights not yet set."""
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

        config = Qwen2_5_VLVisionConfig.from_dict(description)
        return Qwen25VLTower(config, folder / "preprocessor_config.json", dtype=dtype, device="cpu")
