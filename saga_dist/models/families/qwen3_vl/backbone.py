"""The frozen language model of Qwen3-VL, which adds the DeepStack maps in its first layers."""

from __future__ import annotations

from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, Qwen3VLTextRotaryEmbedding

from saga_dist.models.families.decoder import MropeBackbone


class Qwen3VLBackbone(MropeBackbone):
    """Decoder and output layer of a dense Qwen3-VL."""

    model_class = Qwen3VLTextModel
    rotary_class = Qwen3VLTextRotaryEmbedding
