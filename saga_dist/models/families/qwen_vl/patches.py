"""Preprocessing of the Qwen-VL generations: images cut into patches, pixel values looked up in a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from saga_dist.models.families.base import PixelBatch, TokenLayout
from saga_dist.models.families.preprocessing import check_images


class PatchCutter:
    """Cuts images into patches in the order of the family's processor.

    The processor itself would enlarge a 224-pixel image silently, to the smallest size of the checkpoint (65,536 pixels
    in the released ones). So patches are cut here, and the processor's values are looked up in a table, which gives
    bit-identical pixels.

    Args:
        layout: sizes of the tokens.
        frames: number of times that an image is repeated along the time axis of a patch.
        table_CV: float32 [3, 256], the processor's output for every pixel value of every channel.
    """

    def __init__(self, layout: TokenLayout, frames: int, table_CV: np.ndarray) -> None:
        self._layout, self._frames, self._table_CV = layout, frames, table_CV

    def preprocess(self, images: Sequence[np.ndarray]) -> PixelBatch:
        """Returns the pixels of uint8 [height, width, 3] images, rescaled and normalised, not resized.

        Raises:
            DataError: an image is not uint8 RGB, or a side is no multiple of ``layout.pixels_per_token``.
        """
        check_images(images, self._layout.pixels_per_token)
        patch = self._layout.patch_size
        grids = tuple((1, image.shape[0] // patch, image.shape[1] // patch) for image in images)
        counts = [rows * columns for _, rows, columns in grids]
        values_PX = torch.empty(sum(counts), 3 * self._frames * patch**2)
        for image, part_PX in zip(images, values_PX.split(counts), strict=True):
            self._cut(image, part_PX.numpy())
        return PixelBatch(
            pixel_values=values_PX,
            grids=grids,
            lengths=tuple(self._layout.num_tokens(grid) for grid in grids),
        )

    def _cut(self, image_HWC: np.ndarray, out_PX: np.ndarray) -> None:
        """Writes the patches of an image in the processor's order.

        Args:
            image_HWC: uint8 [height, width, 3].
            out_PX: float32 [P, X], output: patches ordered by merged block, each with channels, frames, rows, columns.
        """
        patch, merge = self._layout.patch_size, self._layout.merge_size
        rows, columns = (side // (merge * patch) for side in image_HWC.shape[:2])
        blocks = out_PX.reshape(rows, columns, merge, merge, 3, -1, patch, patch)
        for channel, table_V in enumerate(self._table_CV):
            plane_HW = table_V.take(
                image_HWC[..., channel], mode="clip"
            )  # faster than the default mode; no value is out of range
            cut = plane_HW.reshape(rows, merge, patch, columns, merge, patch).transpose(0, 3, 1, 4, 2, 5)
            blocks[:, :, :, :, channel] = cut[:, :, :, :, None]
