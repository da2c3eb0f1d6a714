"""Data sets with one folder of images per class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from saga_dist.data.folder_walk import READ_ALREADY, Found, find_images, list_folder
from saga_dist.data.layouts.listing import ClassFiles
from saga_dist.data.left_out import LeftOut

NO_CLASS = "an image in no class folder"
"""Reason for images beside the class folders."""
NESTED = "nested deeper than a class folder"
"""Reason for images in a folder below a class folder."""


class ClassFolders(NamedTuple):
    """The class folders in a folder."""

    folders: dict[str, Found]
    """Class folders by name, sorted by name (code points), with paths relative to the data set."""
    left_out: list[LeftOut]
    """Everything else in the folder."""


def class_folders(root: Path, path: str = "", *, keep: Callable[[str], bool] = lambda name: True) -> ClassFolders:
    """Returns the folders in a folder of a data set.

    Args:
        root: folder of the data set, with links resolved.
        path: path of the folder to list relative to the root; empty for the root itself.
        keep: function of a name that returns False for folders that are no classes.
    """
    folder = (root / path).resolve()
    content = list_folder(folder, path)
    left_out = [*content.left_out, *(LeftOut(found.path, NO_CLASS) for found in content.images)]
    folders: dict[str, Found] = {}
    for found in sorted(content.folders):
        name = found.path.rpartition("/")[2]
        if folder.is_relative_to(found.real):
            left_out.append(LeftOut(found.path, READ_ALREADY))
        elif keep(name):
            folders[name] = found
    return ClassFolders(folders, left_out)


def scan_classes(root: Path, classes: Mapping[str, Found], left_out: list[LeftOut]) -> ClassFiles:
    """Returns the images in class folders, and what is left out of them: nested images, other and hidden files.

    Args:
        root: folder of the data set, with links resolved.
        classes: class name to folder, from ``class_folders``.
        left_out: what is left out already; the files that are left out of the class folders come behind it.

    Raises:
        DataError: a class name is not printable, an image is not a regular file, or a file has two names.
    """
    files = ClassFiles(root)
    files.left_out += left_out
    class_paths = {folder.real for folder in classes.values()} | {root}
    for name, folder in classes.items():
        files.declare(name, str(root))
        content = find_images(folder.real, folder.path, elsewhere=class_paths)
        files.left_out += content.left_out
        for found in content.images:
            if found.path.count("/") > folder.path.count("/") + 1:
                files.left_out.append(LeftOut(found.path, NESTED))
            else:
                files.add_found(name, found.path, found.status, found.real, str(root / found.path))
    return files
