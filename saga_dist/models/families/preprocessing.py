"""Preprocessing that all families share; scale, mean and deviation come from the family's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saga_dist.errors import DataError, ModelError


def load_processor(path: Path) -> Any:
    """Returns the image processor of a ``preprocessor_config.json``.

    Raises:
        ModelError: transformers cannot load it.
    """
    from transformers import AutoImageProcessor

    try:
        # With the PIL backend the values are the same, and a deployed encoder needs no torchvision.
        return AutoImageProcessor.from_pretrained(path.parent, backend="pil", trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"the image processor cannot be loaded ({reason})", where=str(path)) from error


def value_table(processor: Any) -> np.ndarray:
    """Returns the processor's output for every pixel value of every channel, float32 [3, 256].

    The PIL backend rescales and normalises each value independently, in float64, so a lookup in this table gives
    bit-identical results.
    """
    values_C1V = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 256))
    if processor.do_rescale:
        values_C1V = processor.rescale(values_C1V, processor.rescale_factor)
    if processor.do_normalize:
        values_C1V = processor.normalize(values_C1V, processor.image_mean, processor.image_std)
    return values_C1V[:, 0].astype(np.float32)


def check_images(images: Sequence[np.ndarray], multiple: int) -> None:
    """Checks that all images are uint8 RGB with sides that are multiples of ``multiple`` pixels.

    Raises:
        DataError: an image is not.
    """
    for index, image in enumerate(images):
        where = f"image {index}"
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(
                f"{image.dtype} array of shape {image.shape}", where=where, expected="uint8 [height, width, 3]"
            )
        height, width = image.shape[:2]
        if height % multiple or width % multiple or not height or not width:
            raise DataError(
                f"{height} x {width} pixels",
                where=where,
                expected=f"sides that are multiples of {multiple} (patch size x merge size)",
                fix="set data.image_size accordingly",
            )
