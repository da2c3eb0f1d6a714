"""Lists the images below a folder that is to be embedded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saga_dist.data.folder_walk import find_images
from saga_dist.data.left_out import LeftOut, refuse_unreadable


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image below a folder, with its state when the folder was listed."""

    id: str
    """Path relative to the folder, with forward slashes."""
    size_bytes: int
    """Size of the file in bytes."""
    mtime_ns: int
    """Modification time in nanoseconds since 1970."""


@dataclass(frozen=True, slots=True)
class ImageList:
    """Result of ``list_images``."""

    files: tuple[ImageFile, ...]
    """The images, sorted by path."""
    bad: tuple[tuple[str, str], ...]
    """(path, reason) of the images that cannot be used: a link to nowhere, an empty file, a name that is not UTF-8."""
    left_out: tuple[LeftOut, ...]
    """Everything below the folder that is left out, with the reason."""


def list_images(root: Path) -> ImageList:
    """Returns the images below a folder, at every depth; links to folders are followed, hidden files are left out.

    Args:
        root: folder of images.

    Raises:
        DataError: the folder, or one below it, cannot be read.
    """
    content = find_images(root)
    refuse_unreadable(content.left_out, root)
    files: list[ImageFile] = []
    left_out = content.left_out
    for found in content.images:
        if _is_utf8(found.path):
            files.append(ImageFile(found.path, found.status.st_size, found.status.st_mtime_ns))
        else:
            left_out.append(LeftOut(found.path, "a name that is not UTF-8", "unusable"))
    bad = sorted((_shown(one.path), f"{_shown(one.path)}: {one.reason}") for one in left_out if one.kind == "unusable")
    return ImageList(tuple(files), tuple(bad), tuple(left_out))


def _shown(path: str) -> str:
    return path if _is_utf8(path) else ascii(path)


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
