"""The language model of Qwen3-VL, frozen: DeepStack maps are added in its first layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, Qwen3VLTextRotaryEmbedding

from saga_dist.errors import ModelError
from saga_dist.models.families.base import TokenLayout
from saga_dist.models.families.decoder import MropeBackbone
from saga_dist.models.weights import build_empty

if TYPE_CHECKING:
    from transformers import Qwen3VLConfig


class Qwen3VLBackbone(MropeBackbone):
    """Decoder and output layer of a dense Qwen3-VL.

    Args:
        config: the whole checkpoint's configuration.
        layout: sizes of the encoder tokens.
        tied: whether the output layer is the transposed embedding table.
        dtype: of the weights.
        device: where they are put; their values are not set.
    """

    def __init__(
        self, config: Qwen3VLConfig, layout: TokenLayout, *, tied: bool, dtype: torch.dtype, device: str | torch.device
    ) -> None:
        text = config.text_config
        if layout.num_deepstack > text.num_hidden_layers:
            raise ModelError(
                f"{layout.num_deepstack} DeepStack levels",
                where="config.json",
                expected=f"at most {text.num_hidden_layers}",
            )
        model = build_empty(
            lambda: Qwen3VLTextModel._from_config(text, attn_implementation="sdpa", dtype=dtype), device=device
        )
        model.rotary_emb = Qwen3VLTextRotaryEmbedding(config=text).to(device)
        super().__init__(model, text, layout, image_token_id=config.image_token_id, tied=tied, dtype=dtype)

    def _queries(self, attention: Any, hidden_RD: torch.Tensor) -> torch.Tensor:
        return attention.q_norm(attention.q_proj(hidden_RD).unflatten(-1, (-1, attention.head_dim)))
