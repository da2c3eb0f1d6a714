"""Reads untrusted image files, and applies the optional augmentation."""

from __future__ import annotations

import math
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from saga_dist.data.formats import EXAMPLES, open_picture
from saga_dist.errors import DataError

MAX_PIXELS = 64_000_000
"""Largest number of pixels that is decoded (8000 x 8000), checked in the header, so that a small file cannot fill the
memory."""

# Exceptions that Pillow's decoders raise for damaged files.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, TypeError, AssertionError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip
_FIX = "replace or remove the file"
_CONVERT = "convert the image"
_PIXELS = "RGB, grey, palette or CMYK of 8 or 16 bits"
_WHITE = (255, 255, 255, 255)
_OPENING = threading.Lock()
"""Guards the warning filters, which belong to the whole process, while an image is opened in one of several threads."""


class _UnsuitablePixels(DataError):
    """The pixels of an image cannot be shown as RGB, because their range or their meaning is not known."""


def read_image(
    path: str | Path, size: int, *, banner: int = 0, fast_jpeg: bool = False, file: IO[bytes] | None = None
) -> np.ndarray:
    """Returns the whole image as RGB, uint8 [size, size, 3], resized with bicubic filtering and no crop.

    The EXIF orientation is applied, transparent pixels become white, 16-bit grey is reduced to its upper 8 bits, and
    the first frame or page of several is used.

    Args:
        path: a file of any format of ``formats``; its content decides which.
        size: side of the square, pixels.
        banner: rows at the bottom that are not part of the image (a copyright line), removed before scaling, pixels.
        fast_jpeg: True to let the JPEG decoder scale a large image down, to no less than ``size``, and torch do the
            rest; this saves most of the time and changes pixels slightly (a deviation from the paper).
        file: content of the image, which is closed, where it is no file of its own; ``path`` is then its name.

    Raises:
        DataError: the file is missing, not a regular file, of another format or damaged, the image has more than
            ``MAX_PIXELS`` pixels, its pixels have no agreed brightness, or a side is not larger than the banner.

    Source: SAGA section 4 (224 x 224, the whole image).
    """
    path = Path(path)
    with _readable(path, banner, file) as image:
        if fast_jpeg and image.format == "JPEG":
            image, banner = _draft(image, size, banner)
            return _fast_square(_upright_rgb(image, banner), size)
        return square_image(image, size, banner=banner)


def read_original(path: str | Path, *, banner: int = 0, file: IO[bytes] | None = None) -> Image.Image:
    """Returns an image as upright RGB at its own size, for encoders with their own preprocessing.

    Args:
        path: as for ``read_image``.
        banner: as for ``read_image``.
        file: as for ``read_image``.

    Raises:
        DataError: as for ``read_image``.
    """
    with _readable(Path(path), banner, file) as image:
        return _upright_rgb(image, banner)


@contextmanager
def _readable(path: Path, banner: int, content: IO[bytes] | None) -> Iterator[Image.Image]:
    """Yields the image with only its header read; an exception of a decoder in the body becomes a DataError."""
    with _open_regular(path) if content is None else content as file:
        try:
            image = _open(path, file)
            if min(image.size) <= banner:
                raise DataError(
                    f"{image.width} x {image.height} pixels with a banner of {banner}", where=str(path), fix=_FIX
                )
            yield image
        except _UnsuitablePixels as error:
            raise DataError(str(error), where=str(path)) from error
        except _DAMAGE as error:
            raise DataError(f"damaged image ({_line(error)})", where=str(path), fix=_FIX) from error


def _open_regular(path: Path) -> IO[bytes]:
    try:
        # O_NONBLOCK: opening a FIFO would otherwise block until a writer opens it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        fix = "make it readable (chmod +r)" if isinstance(error, PermissionError) else "check that the file exists"
        raise DataError(f"cannot read the image ({reason})", where=str(path), fix=fix) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError("not a regular file", where=str(path), expected="an image file", fix=_FIX)
    return os.fdopen(descriptor, "rb")


def augment(
    image_HWC: np.ndarray,
    generator: np.random.Generator,
    *,
    flip: bool,
    shift: float,
    color_jitter: float,
    crop: float = 1.0,
) -> np.ndarray:
    """Returns an augmented copy of an image, uint8 [H, W, 3]; a pure function of image, key and settings.

    The same random numbers are drawn for all settings, so that one setting does not change the effect of another.

    Args:
        image_HWC: uint8 [H, W, 3].
        generator: a new generator from ``counter_generator``.
        flip: True to mirror the image horizontally with probability 1/2.
        shift: largest shift in each direction, as a share of the side, in [0, 1]; the border repeats the edge.
        color_jitter: largest change c of the gain of each channel, which is uniform in [1 - c, 1 + c].
        crop: smallest share of the area that a random window keeps, in (0, 1]; 1 for the whole image. The aspect ratio
            of the window is between 3 : 4 and 4 : 3 of the image's; the window is scaled back to the image's size
            (bicubic).
    """
    coin, down, right = generator.random(), generator.uniform(-1, 1), generator.uniform(-1, 1)
    gains_C = 1 + color_jitter * generator.uniform(-1, 1, 3)
    window = generator.random(4)
    height, width = image_HWC.shape[:2]
    if crop < 1:
        image_HWC = _window(image_HWC, window, crop)
    rows = np.clip(np.arange(height) - round(down * shift * height), 0, height - 1)
    columns = np.clip(np.arange(width) - round(right * shift * width), 0, width - 1)
    if flip and coin < 0.5:
        columns = columns[::-1]
    moved = image_HWC[rows][:, columns]
    if color_jitter == 0:
        return moved
    return np.clip(np.rint(moved * gains_C), 0, 255).astype(np.uint8)


def _window(image_HWC: np.ndarray, uniform_4: np.ndarray, crop: float) -> np.ndarray:
    """Returns a random window of the image, scaled to the image's size.

    Args:
        image_HWC: uint8 [H, W, 3].
        uniform_4: numbers in [0, 1) that determine area, aspect ratio, top and left.
        crop: smallest share of the area.
    """
    height, width = image_HWC.shape[:2]
    area = 1 - uniform_4[0] * (1 - crop)
    shape = math.exp((2 * uniform_4[1] - 1) * math.log(4 / 3) / 2)
    # A side cannot be longer than the image's; if it is clipped, the other side is chosen to keep the area.
    across = min(1.0, max(area, math.sqrt(area) * shape))
    down = area / across
    top, left = uniform_4[2] * (1 - down) * height, uniform_4[3] * (1 - across) * width
    box = (left, top, left + across * width, top + down * height)
    image = Image.fromarray(np.ascontiguousarray(image_HWC))
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def _open(path: Path, file: IO[bytes]) -> Image.Image:
    """Returns the image with only its header read."""
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = open_picture(path, file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, "more than Pillow opens") from error
    except Image.UnidentifiedImageError as error:
        raise DataError("not an image, or damaged", where=str(path), expected=EXAMPLES, fix=_FIX) from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width} x {image.height} pixels")
    return image


def _too_large(where: Path | str, size: str) -> DataError:
    return DataError(
        f"{size}",
        where=str(where),
        expected=f"at most {MAX_PIXELS // 1_000_000} megapixels",
        fix="scale the image down",
    )


def square_opened(image: Image.Image, size: int, *, where: str) -> np.ndarray:
    """Returns an image that the caller opened, as ``read_image`` returns a file: uint8 [size, size, 3].

    Args:
        image: the opened image, of any mode; it may be a file of any format that Pillow opens.
        size: side of the square, pixels.
        where: name of the image, for the error.

    Raises:
        DataError: the image has no pixels or more than ``MAX_PIXELS``, or cannot be decoded.
    """
    pixels = f"{image.width} x {image.height} pixels"
    if 0 in image.size:
        raise DataError(pixels, where=where, expected="at least one pixel", fix=_FIX)
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(where, pixels)
    try:
        return square_image(image, size)
    except _DAMAGE as error:
        raise DataError(f"damaged image ({_line(error)})", where=where, fix=_FIX) from error


def square_image(image: Image.Image, size: int, *, banner: int = 0) -> np.ndarray:
    """Returns an opened image as upright RGB, uint8 [size, size, 3], with the processing of ``read_image``.

    Args:
        image: the opened image.
        size: side of the square, pixels.
        banner: rows at the bottom that are not part of the image, pixels.
    """
    small = _upright_rgb(image, banner).resize((size, size), Image.Resampling.BICUBIC)
    return np.array(small)  # a copy, because a view of Pillow's memory is read-only


def _upright_rgb(image: Image.Image, banner: int) -> Image.Image:
    image.load()
    # The condition saves a copy: Pillow also copies an image that needs no rotation (and, in _to_rgb, no conversion).
    upright = ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image
    if banner:
        upright = upright.crop((0, 0, upright.width, upright.height - banner))
    return _to_rgb(upright)


def _draft(image: Image.Image, size: int, banner: int) -> tuple[Image.Image, int]:
    """Sets the image to be decoded at scale 1/1, 1/2, 1/4 or 1/8; returns it and the banner's height at that scale."""
    height = image.height
    image.draft(None, (size, size))
    # Rounded up, because a row mixed with the banner is worse than a missing row of the image.
    return image, math.ceil(banner * image.height / height)


def _fast_square(image: Image.Image, size: int) -> np.ndarray:
    """Returns the image resized to uint8 [size, size, 3] by torch's vectorised form of Pillow's bicubic filter.

    Its 16-bit coefficients change pixel values by at most 1.
    """
    import torch

    pixels_1CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    small_1CHW = torch.nn.functional.interpolate(pixels_1CHW, (size, size), mode="bicubic", antialias=True)
    small: np.ndarray = small_1CHW[0].permute(1, 2, 0).contiguous().numpy()
    return small


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255, so that the image is white
        return _grey(np.asarray(image).astype(np.int64)).convert("RGB")
    if image.mode in ("F", "LAB"):  # Pillow clips real numbers at 255, and cannot convert L*a*b*
        raise _UnsuitablePixels(f"pixels of mode {image.mode}", expected=_PIXELS, fix=_CONVERT)
    if image.has_transparency_data:
        # Pillow converts premultiplied grey (La) to LA only.
        colors = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colors.size, _WHITE), colors).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(values_HW: np.ndarray) -> Image.Image:
    if values_HW.min() < 0 or values_HW.max() >= 1 << 16:
        raise _UnsuitablePixels("whole numbers of 32 bits", expected=_PIXELS, fix=_CONVERT)
    return Image.fromarray((values_HW >> 8).astype(np.uint8))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
