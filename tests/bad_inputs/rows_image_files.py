"""Image files as the data set and the searches read them."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from bad_inputs.row import BadInput, Workspace
from PIL import Image

from saga_dist.data import formats
from saga_dist.data.images import read_image


def read(workspace: Workspace) -> object:
    """Reads the one file of the workspace."""
    (path,) = workspace.folder.iterdir()
    return read_image(path, 8)


def file(name: str, content: bytes) -> Callable[[Workspace], object]:
    """Writes a file."""
    return lambda workspace: (workspace.folder / name).write_bytes(content)


def image(name: str, pixels: np.ndarray, kind: str) -> Callable[[Workspace], object]:
    """Writes an image of a format."""
    return lambda workspace: Image.fromarray(pixels).save(workspace.folder / name, format=kind)


def cut(name: str, kind: str) -> Callable[[Workspace], object]:
    """Writes the first half of an image file."""

    def write(workspace: Workspace) -> None:
        path = workspace.folder / name
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, format=kind)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


def without_heif(workspace: Workspace) -> None:
    """Writes the head of a HEIC image where its reader is not installed."""
    workspace.patch.setattr(formats, "heif_is_installed", lambda: False)
    (workspace.folder / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


RGB = np.full((9, 9, 3), 90, np.uint8)

ROWS: list[BadInput] = [
    BadInput(
        "a HEIC image without its reader",
        "formats",
        read,
        ("a.heic: a HEIC image", "pip install saga-dist[heif]"),
        without_heif,
    ),
    BadInput("a document with the name of an image", "formats", read, ("not an image",), image("a.jpg", RGB, "PDF")),
    BadInput("a drawing with the name of an image", "formats", read, ("not an image",), image("a.png", RGB, "EPS")),
    BadInput("a web page with the name of an image", "formats", read, ("not an image",), file("a.jpg", b"<html>404")),
    BadInput("a text with the name of a Targa image", "formats", read, ("a.tga: ",), file("a.tga", b"no image " * 9)),
    BadInput(
        "a TIFF image of real numbers",
        "pixels without an agreed brightness",
        read,
        ("a.tif: pixels of mode F", "expected RGB, grey, palette or CMYK of 8 or 16 bits", "convert the image"),
        image("a.tif", np.full((9, 9), 0.5, np.float32), "TIFF"),
    ),
    BadInput(
        "a TIFF image of 32-bit numbers",
        "pixels without an agreed brightness",
        read,
        ("a.tif: whole numbers of 32 bits",),
        image("a.tif", np.full((9, 9), 70_000, np.int32), "TIFF"),
    ),
    BadInput("half of a TIFF image", "damaged images", read, ("a.tif: damaged image",), cut("a.tif", "TIFF")),
    BadInput("half of an AVIF image", "damaged images", read, ("a.avif: ",), cut("a.avif", "AVIF")),
    BadInput("half of a GIF image", "damaged images", read, ("a.gif: damaged image",), cut("a.gif", "GIF")),
    BadInput(
        "a pipe with the name of an image",
        "files that are no images",
        read,
        ("a.png: not a regular file",),
        lambda workspace: os.mkfifo(workspace.folder / "a.png"),
    ),
    BadInput(
        "a folder with the name of an image",
        "files that are no images",
        read,
        ("a.png: not a regular file",),
        lambda workspace: (workspace.folder / "a.png").mkdir(),
    ),
]
