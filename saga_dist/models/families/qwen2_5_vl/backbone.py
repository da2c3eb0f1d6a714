"""The frozen language model of Qwen2.5-VL: a Qwen2.5 decoder, with biases and without norms on queries and keys."""

from __future__ import annotations

from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding, Qwen2_5_VLTextModel

from saga_dist.models.families.decoder import MropeBackbone


class Qwen25VLBackbone(MropeBackbone):
    """Decoder and output layer of a Qwen2.5-VL."""

    model_class = Qwen2_5_VLTextModel
    rotary_class = Qwen2_5_VLRotaryEmbedding
