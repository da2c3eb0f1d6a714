"""Images as data URIs, so that the page needs no other files."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

THUMBNAIL = 224
"""Longest side of a picture on the page, pixels."""
_QUALITY = 85
_HEAT = ((255, 214, 92), (235, 68, 32))
"""RGB colours of the weakest and the strongest attention."""
_MAX_OPACITY = 185  # of 255


def picture(image_HWC: np.ndarray, size: int = THUMBNAIL) -> str:
    """Returns an RGB image as a JPEG data URI, scaled down if it is larger than ``size``.

    Args:
        image_HWC: uint8 [H, W, 3].
        size: longest side, pixels.
    """
    image = Image.fromarray(image_HWC)
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return _data_uri("image/jpeg", buffer.getvalue())


def heat(weights_RC: np.ndarray) -> str:
    """Returns attention weights as the data URI of a transparent PNG, one pixel per token, to stretch over the picture.

    The opacity of a token is proportional to (weight / largest weight) ** 1.5: with zero weight it is transparent, and
    the exponent keeps weak attention from covering the picture.

    Args:
        weights_RC: [rows, columns], non-negative.
    """
    return _data_uri("image/png", _png(heat_rgba(weights_RC)))


def heat_rgba(weights_RC: np.ndarray) -> np.ndarray:
    """Returns the overlay as uint8 [R, C, 4], RGBA.

    Args:
        weights_RC: [rows, columns], non-negative.
    """
    weights = np.asarray(weights_RC, np.float64)
    largest = weights.max()
    share_RC = weights / largest if largest > 0 else np.zeros_like(weights)
    weak, strong = (np.array(colour, np.float64) for colour in _HEAT)
    colours_RC3 = weak + share_RC[..., None] * (strong - weak)
    return np.concatenate([colours_RC3, _MAX_OPACITY * share_RC[..., None] ** 1.5], axis=-1).round().astype(np.uint8)


def _png(rgba: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgba, "RGBA").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
