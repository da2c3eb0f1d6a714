"""The vision tower of a saved Qwen3-VL encoder, which needs torch but not transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saga_dist.models.encoder_folder import PREPROCESSING_NAME
from saga_dist.models.families.base import PixelBatch, TokenLayout, VisionTower
from saga_dist.models.families.preprocessing import saved_value_table
from saga_dist.models.families.qwen3_vl.plain_model import PlainVisionModel, VisionConfig
from saga_dist.models.families.qwen_vl.patches import PatchCutter
from saga_dist.models.weights import build_empty
from saga_dist.utils.output_files import write_file


class PlainQwen3VLTower(VisionTower):
    """Vision tower in plain torch, with uninitialised weights; its tokens are those of ``Qwen3VLTower`` to the bit.

    Args:
        description: result of ``VisionTower.describe``, kept as it is.
        config: the values of it that determine the model.
        preprocessing: content of ``preprocessor_config.json``, kept as it is.
        table_CV: float32 [3, 256], value of every pixel value of every channel.
        dtype: dtype of the weights.
    """

    family = "qwen3_vl"

    def __init__(
        self,
        description: dict[str, Any],
        config: VisionConfig,
        preprocessing: dict[str, Any],
        table_CV: np.ndarray,
        *,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.layout = TokenLayout(
            width=config.out_hidden_size,
            num_deepstack=len(config.deepstack_visual_indexes),
            patch_size=config.patch_size,
            merge_size=config.spatial_merge_size,
        )
        self.model = build_empty(lambda: PlainVisionModel(config).to(dtype), device="cpu")
        self._description, self._preprocessing = description, preprocessing
        self._patches = PatchCutter(self.layout, config.temporal_patch_size, table_CV)

    @classmethod
    def rebuild(cls, description: dict[str, Any], folder: Path, *, dtype: torch.dtype) -> VisionTower:
        """Returns a tower with uninitialised weights from its ``describe()`` and its preprocessing files.

        It is the tower of transformers where the description or the preprocessing has settings that the plain one does
        not know.
        """
        config = VisionConfig.read(description)
        preprocessing = json.loads((folder / PREPROCESSING_NAME).read_text("utf-8"))
        table_CV = saved_value_table(preprocessing)
        if config is None or table_CV is None or not _fits(preprocessing, config):
            from saga_dist.models.families.qwen3_vl.tower import Qwen3VLTower

            return Qwen3VLTower.rebuild(description, folder, dtype=dtype)
        return cls(description, config, preprocessing, table_CV, dtype=dtype)

    def preprocess(self, images: Sequence[np.ndarray]) -> PixelBatch:
        """Returns the pixels of uint8 [height, width, 3] images, rescaled and normalised, not resized.

        Raises:
            DataError: an image is not uint8 RGB, or a side is no multiple of ``layout.pixels_per_token``.
        """
        return self._patches.preprocess(images)

    def forward(self, batch: PixelBatch) -> torch.Tensor:
        """Returns values_NW [sum of N, (1 + L) * D]: merged tokens, then the DeepStack maps in the order of layers."""
        pixels_PX = batch.pixel_values.to(self.model.pos_embed.weight.device)
        values_NW: torch.Tensor = self.model(pixels_PX, batch.grids)
        return values_NW

    def enable_gradient_checkpointing(self) -> None:
        """Makes the backward pass recompute the activations of the layers instead of storing them."""
        self.model.recompute = True

    def describe(self) -> dict[str, Any]:
        """Returns the vision configuration as it was saved, with the dtype of the weights."""
        dtype = str(self.model.pos_embed.weight.dtype).removeprefix("torch.")
        return {**self._description, "dtype": dtype}

    def save_preprocessing(self, folder: Path) -> None:
        """Writes ``preprocessor_config.json`` into a folder, as it was saved."""
        text = json.dumps(self._preprocessing, indent=2, sort_keys=True) + "\n"
        write_file(folder / PREPROCESSING_NAME, text)


def _fits(preprocessing: dict[str, Any], config: VisionConfig) -> bool:
    """Returns True when preprocessing and model have the same patches; transformers' tower names the difference."""
    names = {
        "patch_size": "patch_size",
        "temporal_patch_size": "temporal_patch_size",
        "merge_size": "spatial_merge_size",
    }
    return all(preprocessing.get(name) == getattr(config, own) for name, own in names.items())
