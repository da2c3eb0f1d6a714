"""Finds the images in a folder, and says of everything else in it why it is left out.

This is the only place that decides which files of a folder are images.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from saga_dist.data.formats import HEIF_FIX, HEIF_SUFFIXES, heif_is_installed, suffix, suffixes
from saga_dist.data.left_out import LeftOut

HIDDEN = "hidden"
"""Reason for names that begin with a dot."""
NO_SUFFIX = "a name without a suffix"
"""Reason for names that do not say a format."""
EMPTY = "an empty file"
"""Reason for images of 0 bytes."""
READ_ALREADY = "a link to a folder that is read already"
"""Reason for links to folders that would otherwise be read twice, or for ever."""


class Found(NamedTuple):
    """An image or a folder that was found."""

    path: str
    """Path relative to the folder in which the search began, with forward slashes."""
    status: os.stat_result
    """Status of the file; for a link, of its target."""
    real: Path
    """Path with links resolved."""
    is_link: bool
    """True when the last part of the path is a symbolic link."""


class FolderContent(NamedTuple):
    """The content of one folder, or of a folder and all folders below it."""

    images: list[Found]
    """Images by the suffixes of their names, sorted by path; they may be special files."""
    folders: list[Found]
    """Sub-folders that are not hidden, sorted by path."""
    left_out: list[LeftOut]
    """All other entries."""


def list_folder(folder: Path, path: str = "") -> FolderContent:
    """Returns the content of one folder, without that of its sub-folders.

    Args:
        folder: folder to list, with links resolved.
        path: its path relative to the folder in which the search began; empty for that folder itself.
    """
    content = FolderContent([], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                _sort_entry(entry, f"{path}/{entry.name}" if path else entry.name, folder, content)
    except OSError as error:
        content.left_out.append(LeftOut(path or ".", f"cannot be read ({error.strerror})", "unreadable"))
    return content


def find_images(folder: Path, path: str = "", *, elsewhere: Container[Path] = frozenset()) -> FolderContent:
    """Returns the images in a folder and in all folders below it, with every folder read once.

    Links to folders are followed, wherever they lead; of two ways to a folder the one without a link is taken.

    Args:
        folder: folder to search.
        path: its path relative to the folder in which the search began; empty for that folder itself.
        elsewhere: resolved paths of folders that are read by other calls, and are left out here.
    """
    start = folder.resolve()
    images: list[Found] = []
    folders: list[Found] = []
    left_out: list[LeftOut] = []
    visited: set[Path] = set()
    waiting, linked = [(start, path)], list[Found]()
    while waiting or linked:
        here, place = waiting.pop() if waiting else (linked[0].real, linked.pop(0).path)
        if here in visited or (here in elsewhere and here != start):
            left_out.append(LeftOut(place, READ_ALREADY))
            continue
        visited.add(here)
        content = list_folder(here, place)
        images += content.images
        folders += content.folders
        left_out += content.left_out
        for found in content.folders:
            if found.is_link:
                linked.append(found)
            else:
                waiting.append((found.real, found.path))
    return FolderContent(sorted(images), sorted(folders), sorted(left_out))


def _sort_entry(entry: os.DirEntry[str], path: str, folder: Path, content: FolderContent) -> None:
    """Adds one entry of a folder to the images, the folders or what is left out."""
    if entry.name.startswith("."):
        content.left_out.append(LeftOut(path, HIDDEN))
        return
    name_suffix = suffix(entry.name)
    is_image = name_suffix in suffixes()
    try:
        status = entry.stat()
        real = Path(entry.path).resolve() if entry.is_symlink() else folder / entry.name
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        content.left_out.append(_without_status(entry, path, error, is_image=is_image))
        return
    found = Found(path, status, real, entry.is_symlink())
    if stat.S_ISDIR(status.st_mode):
        content.folders.append(found)
    elif not is_image:
        content.left_out.append(LeftOut(path, f"{name_suffix} is not an image format" if name_suffix else NO_SUFFIX))
    elif name_suffix in HEIF_SUFFIXES and not heif_is_installed():
        content.left_out.append(LeftOut(path, f"{name_suffix} needs `{HEIF_FIX}`", "unusable"))
    elif stat.S_ISREG(status.st_mode) and status.st_size == 0:
        content.left_out.append(LeftOut(path, EMPTY, "unusable"))
    else:
        content.images.append(found)


def _without_status(entry: os.DirEntry[str], path: str, error: Exception, *, is_image: bool) -> LeftOut:
    if isinstance(error, PermissionError):
        return LeftOut(path, f"cannot be read ({error.strerror})", "unreadable")
    reason = "a link to nowhere" if entry.is_symlink() else f"cannot be read ({getattr(error, 'strerror', error)})"
    return LeftOut(path, reason, "unusable" if is_image else "ignored")
