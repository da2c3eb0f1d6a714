"""The language model of Qwen2.5-VL, frozen: a Qwen2.5 decoder with biases and no norms on queries and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding, Qwen2_5_VLTextModel

from saga_dist.models.families.base import TokenLayout
from saga_dist.models.families.decoder import MropeBackbone
from saga_dist.models.weights import build_empty

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLConfig


class Qwen25VLBackbone(MropeBackbone):
    """Decoder and output layer of a Qwen2.5-VL.

    Args:
        config: the whole checkpoint's configuration.
        layout: sizes of the encoder tokens.
        tied: whether the output layer is the transposed embedding table.
        dtype: of the weights.
        device: where they are put; their values are not set.
    """

    def __init__(
        self,
        config: Qwen2_5_VLConfig,
        layout: TokenLayout,
        *,
        tied: bool,
        dtype: torch.dtype,
        device: str | torch.device,
    ) -> None:
        text = config.text_config
        model = build_empty(
            lambda: Qwen2_5_VLTextModel._from_config(text, attn_implementation="sdpa", dtype=dtype), device=device
        )
        model.rotary_emb = Qwen2_5_VLRotaryEmbedding(config=text).to(device)
        super().__init__(model, text, layout, image_token_id=config.image_token_id, tied=tied, dtype=dtype)

    def _queries(self, attention: Any, hidden_RD: torch.Tensor) -> torch.Tensor:
        return attention.q_proj(hidden_RD).unflatten(-1, (-1, attention.head_dim))
