"""Folders of splits above the class folders: ``root/train/<class>/<image>``, ``root/test/…``, ``root/val/…``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from saga_dist.data.folder_walk import Found, list_folder
from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.class_folders import ClassFolders, class_folders, scan_classes
from saga_dist.data.layouts.division import SplitOptions, dividing, make_splits
from saga_dist.data.left_out import LeftOut, summary
from saga_dist.errors import DataError

SPLIT_OF = {"train": "train", "val": "val", "validation": "val", "test": "test"}
"""Split of each lower-case folder name."""
_EXPECTED = "root/train/<class>/<image>, root/test/<class>/<image> and perhaps root/val/<class>/<image>"


def split_folders(root: Path, names: Sequence[str]) -> dict[str, str] | None:
    """Returns split to folder name when the folders of a data set are its splits; None when they are classes.

    Args:
        root: folder of the data set, with links resolved.
        names: names of the folders in it.

    Raises:
        DataError: only some of the folders are splits, or ``train`` or ``test`` is missing.
    """
    found = {name: split for known, split in SPLIT_OF.items() for name in names if name.lower() == known}
    others = [repr(name) for name in names if name not in found]
    splits = set(found.values())
    if "train" not in splits or len(splits) < 2:
        return None
    if others and not ("test" in splits and all(_holds_classes(root / name) for name in found)):
        return None  # a class may be called train
    if others or "test" not in splits or len(splits) < len(found):
        raise DataError(
            f"the folders {', '.join(found)}{f' beside {len(others)} more ({others[0]})' if others else ''}",
            where=str(root),
            expected=_EXPECTED,
            fix="rename or move folders, set data.root to the folder of the classes, or use data.layout=manifest",
        )
    return {split: name for name, split in found.items()}


def load_split_folders(
    root: Path, names: Mapping[str, str], left_out: Sequence[LeftOut], options: SplitOptions
) -> Splits:
    """Returns the splits that a data set's folders are.

    Args:
        root: folder of the data set, with links resolved.
        names: split to folder name, from ``split_folders``.
        left_out: what is left out of the root.
        options: validation classes, drawn from the training classes when there is no folder for them, and image size.

    Raises:
        DataError: a folder has no class folders, a class is in two of them, or there are too few classes or images.
    """
    parts = {split: class_folders(root, name) for split, name in names.items()}
    for split, part in parts.items():
        if not part.folders:
            raise DataError(
                f"no class folders{f' ({summary(part.left_out)})' if part.left_out else ''}",
                where=str(root / names[split]),
                expected=_EXPECTED,
                fix="put the images of each class into a folder of its own, or use data.layout=manifest",
            )
    _refuse_overlap(root, names, parts, options)
    classes: dict[str, Found] = {name: folder for part in parts.values() for name, folder in part.folders.items()}
    files = scan_classes(root, classes, [*left_out, *(one for part in parts.values() for one in part.left_out)])
    val = list(parts["val"].folders) if "val" in parts else None
    return make_splits(files, list(parts["train"].folders), list(parts["test"].folders), options, val=val)


def _refuse_overlap(
    root: Path, names: Mapping[str, str], parts: Mapping[str, ClassFolders], options: SplitOptions
) -> None:
    for one, other in itertools.combinations(parts, 2):
        both = sorted(parts[one].folders.keys() & parts[other].folders.keys())
        if both:
            listed = {split: scan_classes(root, part.folders, part.left_out) for split, part in parts.items()}
            with dividing(listed, options):
                raise DataError(
                    f"class {both[0]!r} is in {one} and in {other}"
                    f"{f' (and {len(both) - 1:,} more)' if len(both) > 1 else ''}",
                    where=str(root),
                    expected="classes that no other split has, because retrieval is tested on unseen classes",
                    fix=f"set data.root={root / names['train']}, to divide its classes, or use data.layout=manifest",
                )


def _holds_classes(folder: Path) -> bool:
    content = list_folder(folder)
    return bool(content.folders) and not content.images
