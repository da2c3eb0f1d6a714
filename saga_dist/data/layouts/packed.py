"""The images of data sets that keep them within larger files, by class, and their division into splits."""

from __future__ import annotations

from pathlib import Path

from saga_dist.data.image_sets import FolderImageSet, Splits
from saga_dist.data.layouts.division import SplitOptions, halves, make_splits
from saga_dist.data.layouts.listing import ClassFiles
from saga_dist.data.layouts.split_folders import SPLIT_OF
from saga_dist.data.packed_images import PackedImageSet, Place
from saga_dist.errors import DataError

ALL = "all"
"""Split of images whose data set has no splits."""


class PackedFiles(ClassFiles):
    """The images of each class of a data set that keeps them within larger files.

    Args:
        root: folder of the data set, with links resolved.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._places: dict[str, Place] = {}
        self._split_of: dict[str, tuple[str, str]] = {}

    def add_packed(self, class_name: str, name: str, place: Place, *, split: str) -> None:
        """Adds an image.

        Args:
            class_name: class of the image.
            name: name of the image, such as ``shard.tar/member.jpg``.
            place: bytes of the image.
            split: ``train``, ``val``, ``test`` or ``ALL``.

        Raises:
            DataError: the name was added before, or the class is in two splits.
        """
        self.declare(class_name, name)
        if name in self._places:
            raise DataError(
                "is there twice", where=str(self.root / name), expected="names of their own", fix="rename it"
            )
        first_split, first = self._split_of.setdefault(class_name, (split, name))
        if first_split != split:
            raise DataError(
                f"class {class_name!r} is in {first_split} ({first}) and in {split}",
                where=str(self.root / name),
                expected="classes that no other split has, because retrieval is tested on unseen classes",
                fix="set data.root to the folder of one split, to divide its classes",
            )
        self._places[name] = place
        self._files[class_name].append((name, place.size))

    def _readable(self, images: FolderImageSet) -> PackedImageSet:
        return PackedImageSet(**vars(images), places=tuple(self._places[name] for name in images.files))

    def divide(self, options: SplitOptions) -> Splits:
        """Returns the splits: those of the data set, or halves of the classes, sorted, where it has none.

        Raises:
            DataError: there are too few classes or images, or no split ``train`` or ``test``.
        """
        sides = {split: sorted(self._classes_of(split), key=_by_number) for split in (*SPLIT_OF.values(), ALL)}
        if sides[ALL]:
            return make_splits(self, *halves(sides[ALL]), options)
        for needed in ("train", "test"):
            if not sides[needed]:
                raise DataError(f"no images of the split {needed!r}", where=str(self.root), fix="add some")
        return make_splits(self, sides["train"], sides["test"], options, val=sides["val"] or None)

    def _classes_of(self, split: str) -> list[str]:
        return [name for name, (side, _) in self._split_of.items() if side == split]


def _by_number(name: str) -> tuple[int, str]:
    """Returns the key by which classes are sorted: numbers by their value, other names by code points."""
    return (len(name), name) if name.isdecimal() else (0, name)
