"""Images as callers give them to an encoder, brought to the square that its tower takes; all encoders use this.

One image gives one vector [E]; several give one row each, [I, E]; none gives [0, E].

one image    path, ``str`` or ``os.PathLike``         the file, read as in training
             PIL image of any mode                    upright by its EXIF data, transparency on white, grey as RGB
             uint8 array [height, width, 3]           RGB
             uint8 array [height, width(, 1)]         grey
             uint8 array [height, width, 4]           RGBA, on white
             floating array of such a shape           values from 0 to 1 are scaled to 0 to 255
             torch tensor of such a dtype             channels first, as in torchvision: [3, height, width]
several      array [I, height, width, channels], tensor [I, channels, height, width]
             list, tuple, generator or other iterable of the above, in any mixture

Everything else is one ``DataError`` that names the image: other dtypes, floating values that are not finite or outside
of 0 to 1 (normalised pixels), channels on the wrong side, empty sides, rows of pixels, encoded bytes, nested lists.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from saga_dist.data.images import read_image, square_opened
from saga_dist.errors import DataError

if TYPE_CHECKING:
    import torch

    ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor
    Images = ImageLike | Iterable[ImageLike]

_CHANNELS = (1, 3, 4)
_EXPECTED = "a path, a PIL image, an array [height, width, 3], a tensor [3, height, width], or a list of these"
_EXPECTED_VALUES = "uint8 from 0 to 255, or floating values from 0 to 1"


def encode_images(
    images: Images, embed: Callable[[list[np.ndarray]], np.ndarray], *, size: int, width: int, batch_size: int
) -> np.ndarray:
    """Returns embeddings float32 [I, E] of several images, or [E] of a single one.

    Args:
        images: one image or several, as the module's table lists them; an iterator is read batch by batch.
        embed: function from a batch of uint8 images [S, S, 3] to their embeddings, float32 [batch, E].
        size: S, side of the squares in pixels.
        width: E, width of an embedding.
        batch_size: images per call of ``embed``, at least 1.

    Raises:
        DataError: an image cannot be read or is no image, or ``batch_size`` is less than 1.
    """
    if batch_size < 1:
        raise DataError(f"batch_size = {batch_size}", where="encode", expected="1 or more")
    if is_one_image(images):
        single: np.ndarray = embed([square_image_of(images, size)])[0]
        return single
    squares = (square_image_of(image, size, where=f"image {index}") for index, image in enumerate(_several(images)))
    batches = iter(lambda: list(islice(squares, batch_size)), [])
    return np.concatenate([np.zeros((0, width), np.float32), *map(embed, batches)])


def is_one_image(images: Any) -> bool:
    """Returns True for a single image, False for a batch or an iterable of images."""
    if isinstance(images, np.ndarray) or _is_tensor(images):
        return images.ndim in (2, 3)
    return isinstance(images, str | os.PathLike | Image.Image)


def square_image_of(image: object, size: int, *, where: str = "image") -> np.ndarray:
    """Returns one image as uint8 [size, size, 3], processed in the same way as in training.

    Args:
        image: one image, as the module's table lists them.
        size: side of the square in pixels.
        where: name of the image, for the error; a file is named by its path.

    Raises:
        DataError: the image cannot be read, or is no image.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(os.fspath(image), size)
    if isinstance(image, Image.Image) and image.mode == "F":
        image = _values_of(image, where)
    if _is_tensor(image):
        image = _channels_last(image, where)
    if isinstance(image, np.ndarray):
        image = _picture(image, where)
    if not isinstance(image, Image.Image):
        raise DataError(_kind(image), where=where, expected=_EXPECTED, fix=_advice(image))
    return square_opened(image, size, where=where)


def _several(images: object) -> Iterator[object]:
    """Returns the images of a batch or an iterable.

    Raises:
        DataError: it is neither.
    """
    is_array = isinstance(images, np.ndarray) and images.dtype.kind not in "UO"  # arrays of paths are lists of paths
    if (is_array or _is_tensor(images)) and images.ndim != 4:  # type: ignore[attr-defined]
        raise _unusable_shape(images, "images")
    if isinstance(images, bytes | bytearray | memoryview | Mapping) or not isinstance(images, Iterable):
        raise DataError(_kind(images), where="images", expected=_EXPECTED, fix=_advice(images))
    return iter(images)


def _is_tensor(image: object) -> Any:
    """Returns True for a torch tensor; an encoder that runs without torch does not import it for this."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def _channels_last(tensor: Any, where: str) -> np.ndarray:
    """Returns a torch tensor [height, width] or [channels, height, width] as an array with the channels last."""
    if tensor.ndim == 3 and tensor.shape[0] not in _CHANNELS:
        raise _unusable_shape(tensor, where)
    values = tensor.detach().cpu()
    values = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    return np.moveaxis(values, 0, -1) if values.ndim == 3 else values


def _picture(values: np.ndarray, where: str) -> Image.Image:
    """Returns an array with the channels last as a PIL image.

    Raises:
        DataError: shape, dtype or values are not those of an image.
    """
    # A matrix of 3 or 4 columns is a row of RGB pixels, as iterating over one image gives it, and not a grey image.
    is_row = values.ndim == 2 and values.shape[1] in (3, 4)
    if (
        values.ndim not in (2, 3)
        or (values.ndim == 3 and values.shape[2] not in _CHANNELS)
        or 0 in values.shape
        or is_row
    ):
        raise _unusable_shape(values, where)
    if np.issubdtype(values.dtype, np.floating):
        values = _scaled(values, where)
    if values.dtype != np.uint8:
        raise DataError(
            f"{values.dtype} array of shape {values.shape}",
            where=where,
            expected=_EXPECTED_VALUES,
            fix="convert it with .astype(np.uint8) if its values are 0 to 255",
        )
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2:] == (1,) else values))


def _scaled(values: np.ndarray, where: str) -> np.ndarray:
    """Returns floating values from 0 to 1 as uint8 from 0 to 255."""
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{values.dtype} array with values that are not finite", where=where, expected=_EXPECTED_VALUES)
    if low < 0 or high > 1:
        raise DataError(
            f"{values.dtype} array with values from {low:g} to {high:g}",
            where=where,
            expected=_EXPECTED_VALUES,
            fix="undo the normalisation: the encoder normalises itself",
        )
    return np.rint(values * 255).astype(np.uint8)


def _values_of(image: Image.Image, where: str) -> np.ndarray:
    """Returns the floating values of a PIL image of mode F, float32 [height, width]."""
    try:
        return np.asarray(image)
    except OSError as error:
        raise DataError(f"damaged image ({error})", where=where) from error


def _unusable_shape(values: Any, where: str) -> DataError:
    """Returns the error for an array or tensor whose shape is not that of an image."""
    shape = tuple(values.shape)
    if _is_tensor(values):
        what, layout, axes = f"torch tensor of shape {shape}", "[channels, height, width]", "permute(2, 0, 1)"
        is_swapped = len(shape) == 3 and shape[-1] in _CHANNELS
    else:
        what, layout, axes = f"{values.dtype} array of shape {shape}", "[height, width, channels]", "transpose(1, 2, 0)"
        is_swapped = len(shape) == 3 and shape[0] in _CHANNELS
    fix = ""
    if is_swapped:
        fix = f"move the channels with .{axes}"
    elif len(shape) == 2 and 0 not in shape:
        fix = "give the whole image, not its rows"
    elif len(shape) == 4:
        fix = "give a batch by itself, or as list(batch)"
    return DataError(what, where=where, expected=f"{layout} with 1, 3 or 4 channels, or [height, width]", fix=fix)


def _kind(image: object) -> str:
    return f"a {type(image).__name__}"


def _advice(image: object) -> str:
    """Returns how to give what is no image by itself; empty when there is no advice."""
    if isinstance(image, bytes | bytearray | memoryview):
        return "open encoded bytes with PIL.Image.open(io.BytesIO(data))"
    if isinstance(image, Iterable) and not isinstance(image, Mapping):
        return "give one flat list of images"
    return ""
