"""The generic layout: one folder per class, ``root/<class>/<image>``, or the same below ``train`` and ``test``."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path

from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.class_folders import ClassFolders, class_folders, scan_classes
from saga_dist.data.layouts.division import SplitOptions, dividing, halves, make_splits
from saga_dist.data.layouts.listing import find_root, read_lines
from saga_dist.data.layouts.split_folders import load_split_folders, split_folders
from saga_dist.data.left_out import summary
from saga_dist.errors import DataError


def load_folder(
    root: str | Path,
    options: SplitOptions | None = None,
    *,
    train_classes: str | Path | None = None,
    test_classes: str | Path | None = None,
) -> Splits:
    """Returns the splits of ``root/<class>/<image>``; they depend on the files and the arguments only.

    When the folders in the root are ``train`` and ``test``, and perhaps ``val`` or ``validation``, they are the splits,
    and the class folders are in them; no class may be in two of them. Otherwise the folders in the root are the
    classes.
    Without lists, the classes are sorted by name (code points); the first half is for training, the second for test.
    With one list, all classes that are not in it form the other side; with two lists, classes in neither are ignored.
    Without a validation folder, validation classes are drawn from the training classes. ``Splits.left_out`` has the
    hidden files, files without the suffix of an image format, nested images and images beside the class folders.

    Args:
        root: folder of the data set; may be a symbolic link.
        options: validation classes and image size.
        train_classes: UTF-8 file with one training class name per line.
        test_classes: UTF-8 file with one test class name per line.

    Raises:
        DataError: the folder or a list cannot be read, a listed class is unknown, repeated or in both lists, or there
            are too few classes or images.
    """
    folder = find_root(root)
    options = options or SplitOptions()
    found = class_folders(folder)
    parts = split_folders(folder, list(found.folders))
    if parts is not None:
        if train_classes or test_classes:
            raise DataError(
                "lists of classes and folders of splits",
                where=str(folder),
                expected="one of the two",
                fix="remove data.train_classes and data.test_classes",
            )
        return load_split_folders(folder, parts, found.left_out, options)
    try:
        _refuse_few(found, folder)
        train, test = _divide(found.folders, folder, train_classes, test_classes)
    except DataError as error:
        with dividing({"all": scan_classes(folder, found.folders, found.left_out)}, options):
            raise error from None
    files = scan_classes(folder, {name: found.folders[name] for name in (*train, *test)}, found.left_out)
    return make_splits(files, train, test, options)


def _refuse_few(found: ClassFolders, folder: Path) -> None:
    if len(found.folders) < 2:
        raise DataError(
            f"{len(found.folders)} class folders{f' ({summary(found.left_out)})' if found.left_out else ''}",
            where=str(folder),
            expected="root/<class>/<image>",
            fix="check data.root",
        )


def _divide(
    known: Collection[str], root: Path, train_list: str | Path | None, test_list: str | Path | None
) -> tuple[list[str], list[str]]:
    if not train_list and not test_list:
        return halves(list(known))
    train = _read_list(Path(train_list), known, root) if train_list else None
    test = _read_list(Path(test_list), known, root) if test_list else None
    if train is None:
        train = set(known) - (test or set())
    if test is None:
        test = set(known) - train
    both = sorted(train & test)
    if both:
        raise DataError(
            f"class {both[0]!r} is also in {train_list}",
            where=str(test_list),
            expected="disjoint lists",
            fix="remove it from one",
        )
    return sorted(train), sorted(test)


def _read_list(path: Path, known: Collection[str], root: Path) -> set[str]:
    lines: dict[str, int] = {}
    for number, name in read_lines(path):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {close[0]!r}?" if close else "correct or remove the line"
            raise DataError(
                f"unknown class {name!r}", where=f"{path}:{number}", expected=f"a folder of {root}", fix=fix
            )
        if name in lines:
            raise DataError(
                f"class {name!r} again (first in line {lines[name]})", where=f"{path}:{number}", fix="remove it"
            )
        lines[name] = number
    return set(lines)
