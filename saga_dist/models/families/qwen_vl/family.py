"""Base of the Qwen2.5-VL and Qwen3-VL families: prompt strings, tensor names, image embeddings with patch grids."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig

from saga_dist.errors import ModelError
from saga_dist.models.families.checkpoint_family import CheckpointFamily
from saga_dist.models.model_files import ModelFiles
from saga_dist.types import EncoderTokens


class QwenVLFamily(CheckpointFamily):
    """Dense checkpoints of one Qwen-VL generation."""

    image_placeholder = "<|vision_start|><|image_pad|><|vision_end|>"
    markers = (
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
    )
    tower_prefixes: ClassVar[dict[str, str]] = {"model.visual.": "", "visual.": ""}
    language_prefixes: ClassVar[dict[str, str]] = {
        "model.language_model.": "language_model.",
        "language_model.": "language_model.",
    }

    def __init__(self, files: ModelFiles, config: dict[str, Any]) -> None:
        super().__init__(files, config)
        vision, text = self._parsed.vision_config, self._parsed.text_config
        if vision.out_hidden_size != text.hidden_size:
            raise ModelError(
                f"vision_config.out_hidden_size = {vision.out_hidden_size}",
                where=f"{files.name}/config.json",
                expected=f"text_config.hidden_size = {text.hidden_size}",
            )

    @property
    def _tower_config(self) -> PreTrainedConfig:
        return self._parsed.vision_config

    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        """Ids of all image, video and vision tokens of the tokenizer and of the configuration."""
        config = self._parsed
        configured = {config.video_token_id, config.vision_start_token_id, config.vision_end_token_id}
        return tuple(sorted({*super().forbidden_token_ids, *configured}))

    def image_inputs(self, tokens: EncoderTokens) -> dict[str, Any]:
        """Returns the images of one request to a serving engine: tokens in wire layout, with their patch grids."""
        grids_I3 = torch.tensor(tokens.grids, dtype=torch.int64)
        return {"image": {"image_embeds": tokens.values_NW.detach().cpu(), "image_grid_thw": grids_I3}}
