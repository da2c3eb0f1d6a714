"""The family of Qwen2.5-VL checkpoints."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import Qwen2_5_VLConfig

from saga_dist.data.prompts import ChatFormat
from saga_dist.models.families.qwen2_5_vl.backbone import Qwen25VLBackbone
from saga_dist.models.families.qwen2_5_vl.tower import Qwen25VLTower
from saga_dist.models.families.qwen_vl.family import QwenVLFamily
from saga_dist.models.model_files import ModelFiles

SYSTEM_TURN = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
"""System turn that the family's chat template inserts when a chat has none."""


class Qwen25VLFamily(QwenVLFamily):
    """Qwen2.5-VL checkpoints (``Qwen2_5_VLForConditionalGeneration``): 3B, 7B, 32B, 72B."""

    name = Qwen25VLTower.family
    architecture = "Qwen2_5_VLForConditionalGeneration"
    chat_format = ChatFormat(f"{SYSTEM_TURN}<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    config_class = Qwen2_5_VLConfig
    tower_class = Qwen25VLTower
    backbone_class = Qwen25VLBackbone
    # In the released files, the names of the decoder's tensors start with "model." alone.
    language_prefixes: ClassVar[dict[str, str]] = {
        **QwenVLFamily.language_prefixes,
        **{f"model.{part}.": f"language_model.{part}." for part in ("embed_tokens", "layers", "norm")},
    }

    def __init__(self, files: ModelFiles, config: dict[str, Any]) -> None:
        super().__init__(files, config)
        self._refuse_sliding_windows()
