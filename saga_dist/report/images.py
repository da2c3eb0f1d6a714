"""Pictures as data URIs: nothing on the page is loaded from anywhere."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

THUMBNAIL = 224
"""Longest side of a picture on the page, pixels."""
_QUALITY = 85
_HEAT = ((255, 214, 92), (235, 68, 32))
"""Colours of weak and of strong attention."""
_OPAQUE = 185


def picture(image_HWC: np.ndarray, size: int = THUMBNAIL) -> str:
    """Returns an RGB image as a JPEG data URI; larger ones are scaled down.

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
    """Returns attention weights as a small transparent PNG data URI, to be stretched over the picture.

    Opacity grows with the weight, relative to the largest one, a little faster than in proportion, so that a flat map
    does not hide the picture; what gets no attention stays clear.

    Args:
        weights_RC: non-negative [rows, columns].
    """
    return _data_uri("image/png", _png(heat_rgba(weights_RC)))


def heat_rgba(weights_RC: np.ndarray) -> np.ndarray:
    """Returns the overlay as uint8 [R, C, 4]."""
    weights = np.asarray(weights_RC, np.float64)
    largest = weights.max()
    share_RC = weights / largest if largest > 0 else np.zeros_like(weights)
    weak, strong = (np.array(colour, np.float64) for colour in _HEAT)
    colours_RC3 = weak + share_RC[..., None] * (strong - weak)
    return np.concatenate([colours_RC3, _OPAQUE * share_RC[..., None] ** 1.5], axis=-1).round().astype(np.uint8)


def _png(rgba: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgba, "RGBA").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
