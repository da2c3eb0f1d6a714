"""Image formats that are read: every still picture of the installed Pillow, and HEIC with the extra ``heif``."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import IO

from PIL import Image

from saga_dist.errors import DataError

COMMON_FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats that are tried first, by Pillow's names."""
EXAMPLES = "a still picture that Pillow reads (JPEG, PNG, WEBP, TIFF, BMP, GIF, AVIF, …)"
"""Expected kind of file, for error messages."""
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""Lower-case suffixes of HEIC images, which need the package pillow-heif."""
HEIF_FIX = "pip install saga-dist[heif]"
"""Command that installs the reader of HEIC images."""

# Formats of Pillow's registry that are no still pictures: videos, drawings and documents, and data.
_NO_PICTURES = frozenset({"FLI", "MPEG", "EPS", "PDF", "WMF", "BUFR", "GRIB", "HDF5", "IPTC"})
_HEAD_BYTES = 64
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"})
_SHARED_BRANDS = frozenset({b"mif1", b"msf1"})  # of HEIC and of AVIF; the list of further brands decides


@cache
def suffixes() -> frozenset[str]:
    """Returns the lower-case suffixes by which images are found in a folder, those of HEIC included."""
    # A function and not a constant, because loading all of Pillow's plugins takes 0.2 s.
    return frozenset(name for name, kind in Image.registered_extensions().items() if _is_read(kind)) | HEIF_SUFFIXES


def suffix(name: str) -> str:
    """Returns the lower-case suffix of a file's name with its dot; empty when there is none."""
    return PurePath(name).suffix.lower()


def heif_is_installed() -> bool:
    """Returns True when HEIC images can be read."""
    return find_spec("pillow_heif") is not None


def open_picture(path: Path, file: IO[bytes]) -> Image.Image:
    """Returns an image with only its header read; its content and not its name decides the format.

    The name decides only among the formats that have no signature (TGA, …): otherwise any text could be one of them.

    Args:
        path: path of the file, for its suffix and for messages.
        file: the opened file, at its beginning.

    Raises:
        DataError: the file is a HEIC image, and pillow-heif is not installed.
        PIL.UnidentifiedImageError: the file is no still picture, or damaged.
    """
    if _is_heic(file.read(_HEAD_BYTES)):  # Image.open reads from the beginning, wherever the file stands
        _register_heif(path)
        return Image.open(file, formats=("HEIF",))
    try:
        return Image.open(file, formats=COMMON_FORMATS)
    except Image.UnidentifiedImageError:
        return Image.open(file, formats=_further_formats(suffix(path.name)))


def _is_read(kind: str) -> bool:
    # MPO has no entry of its own among the readers: it is read as the JPEG that it begins with.
    return kind not in _NO_PICTURES and (kind in Image.OPEN or kind == "MPO")


@cache
def _further_formats(name_suffix: str) -> tuple[str, ...]:
    """Returns the formats beyond the common ones that a file with this suffix may have."""
    kinds = {kind: _is_read(kind) for kind in Image.registered_extensions().values()}
    own = Image.registered_extensions().get(name_suffix)
    return tuple(
        kind
        for kind, is_read in kinds.items()
        if is_read and kind in Image.OPEN and (Image.OPEN[kind][1] is not None or kind == own)
    )


def _is_heic(head: bytes) -> bool:
    if head[4:8] != b"ftyp":
        return False
    brand, further = head[8:12], head[16 : int.from_bytes(head[:4], "big")]
    return brand in _HEIC_BRANDS or (brand in _SHARED_BRANDS and b"avif" not in further)


def _register_heif(path: Path) -> None:
    if not heif_is_installed():
        raise DataError("a HEIC image", where=str(path), expected="the package pillow-heif", fix=HEIF_FIX)
    import pillow_heif

    pillow_heif.register_heif_opener()
