"""The vision tower of InternVL: InternViT, pixel shuffle and projector, computed by transformers' own model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, InternVLConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector

from saga_dist.errors import DataError
from saga_dist.models.families.base import PixelBatch, TokenLayout
from saga_dist.models.families.checkpoint_family import ModelTower
from saga_dist.models.families.preprocessing import check_images
from saga_dist.models.train_checks import check_last_blocks
from saga_dist.models.weights import build_empty

DESCRIBED_KEYS = ("downsample_ratio", "projector_hidden_act", "vision_feature_layer", "vision_feature_select_strategy")
"""Configuration keys that determine the tower, besides the vision configuration and the width of the tokens."""


class VisionModel(InternVLModel):
    """InternVL's model without its language model; ``get_image_features`` is inherited unchanged."""

    def __init__(self, config: InternVLConfig) -> None:
        super(InternVLModel, self).__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = InternVLMultiModalProjector(config)


class InternVLTower(ModelTower):
    """Vision tower and projector for images of one tile.

    Of the text configuration, only the width of the tokens is used.
    """

    family = "internvl"
    config_class = InternVLConfig

    @staticmethod
    def layout_of(config: PreTrainedConfig) -> TokenLayout:
        """Returns the token layout of an InternVL configuration."""
        return TokenLayout(
            width=config.text_config.hidden_size,
            num_deepstack=0,
            patch_size=config.vision_config.patch_size[0],
            merge_size=round(1 / config.downsample_ratio),
        )

    def _empty_model(
        self, config: PreTrainedConfig, *, dtype: torch.dtype, device: str | torch.device
    ) -> PreTrainedModel:
        return build_empty(
            lambda: VisionModel._from_config(config, attn_implementation="sdpa", dtype=dtype), device=device
        )

    def preprocess(self, images: Sequence[np.ndarray]) -> PixelBatch:
        """Returns the pixels of uint8 [size, size, 3] images, one tile each, rescaled and normalised, not resized.

        Raises:
            DataError: an image is not uint8 RGB, a side is no multiple of ``layout.pixels_per_token``, or the images
                are not squares of one size.
        """
        check_images(images, self.layout.pixels_per_token)
        sides = {side for image in images for side in image.shape[:2]}
        if len(sides) != 1:
            raise DataError(
                f"sides of {', '.join(map(str, sorted(sides)))} pixels",
                where="images",
                expected="squares of one size: InternVL takes images as single tiles",
                fix="set data.image_size",
            )
        pixels = self._processor(
            images=list(images),
            do_resize=False,
            crop_to_patches=False,
            return_tensors="pt",
            input_data_format="channels_last",
        )
        patches = sides.pop() // self.layout.patch_size
        grids = ((1, patches, patches),) * len(images)
        return PixelBatch(
            pixel_values=pixels["pixel_values"].float(),
            grids=grids,
            lengths=tuple(self.layout.num_tokens(grid) for grid in grids),
        )

    def forward(self, batch: PixelBatch) -> torch.Tensor:
        """Returns values_NW [sum of N, D], the tokens of all images, concatenated."""
        features_IND = self.model.get_image_features(batch.pixel_values.to(self.model.device)).pooler_output
        return features_IND.flatten(0, 1)

    def last_blocks(self, count: int) -> list[nn.Module]:
        """Returns the last ``count`` layers, the last normalisation and the projector.

        Raises:
            ModelError: the tower has fewer layers.
        """
        vision = self.model.vision_tower
        check_last_blocks(count, len(vision.encoder.layer), where=self.family)
        return [*vision.encoder.layer[-count:], vision.layernorm, self.model.multi_modal_projector]

    def describe(self) -> dict[str, Any]:
        """Returns the vision and projector configuration as JSON values."""
        config = self.model.config.to_dict()
        text = {"model_type": config["text_config"]["model_type"], "hidden_size": self.layout.width}
        return {name: config[name] for name in ("vision_config", *DESCRIBED_KEYS)} | {"text_config": text}
