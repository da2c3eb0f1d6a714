"""Preprocessing that all families share; scale, mean and deviation come from the family's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saga_dist.errors import DataError, ModelError

_VALUE_SETTINGS = {"do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"}
"""Settings that determine the values of the pixels."""


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


def saved_value_table(settings: dict[str, Any]) -> np.ndarray | None:
    """Returns ``value_table`` of the processor that wrote a complete ``preprocessor_config.json``, without loading it.

    Args:
        settings: content of the file.

    Returns:
        float32 [3, 256]; None when a setting is missing, for which the processor has a default.
    """
    if _VALUE_SETTINGS - settings.keys():
        return None
    values_CV = np.broadcast_to(np.arange(256, dtype=np.float32), (3, 256))
    if settings["do_rescale"]:
        values_CV = (values_CV.astype(np.float64) * settings["rescale_factor"]).astype(np.float32)
    if settings["do_normalize"]:
        mean_C1, std_C1 = (np.float32(settings[name]).reshape(-1, 1) for name in ("image_mean", "image_std"))
        values_CV = (values_CV - mean_C1) / std_C1
    return values_CV.astype(np.float32)


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
