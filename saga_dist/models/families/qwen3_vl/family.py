"""The family of dense Qwen3-VL checkpoints."""

from __future__ import annotations

from transformers import Qwen3VLConfig

from saga_dist.data.prompts import QWEN_CHAT
from saga_dist.models.families.qwen3_vl.backbone import Qwen3VLBackbone
from saga_dist.models.families.qwen3_vl.tower import Qwen3VLTower
from saga_dist.models.families.qwen_vl.family import QwenVLFamily


class Qwen3VLFamily(QwenVLFamily):
    """Dense Qwen3-VL checkpoints (``Qwen3VLForConditionalGeneration``)."""

    name = Qwen3VLTower.family
    architecture = "Qwen3VLForConditionalGeneration"
    chat_format = QWEN_CHAT
    config_class = Qwen3VLConfig
    tower_class = Qwen3VLTower
    backbone_class = Qwen3VLBackbone
