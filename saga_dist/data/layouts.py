"""Image sets and their class-disjoint splits, from a folder of class folders or from arrays in memory.

The user's files are never trusted: names are matched, not joined; links out of the data set, special files and one file
reached by two names are refused; every refusal is one line that names the file and the remedy.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from saga_dist.counters import counter_generator
from saga_dist.data.images import SUFFIXES, read_image
from saga_dist.errors import DataError


class ImageSet(Protocol):
    """The images of one split, by index."""

    @property
    def labels_I(self) -> np.ndarray:  # noqa: N802  (shape suffix)
        """[I] int64 in 0 .. C-1, an index into ``class_names`` of this split."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """[C] names, in the order of the labels."""

    @property
    def attributes_IA(self) -> np.ndarray | None:  # noqa: N802  (shape suffix)
        """[I, A] int64 ground-truth attributes where the data has them."""

    def image(self, index: int) -> np.ndarray:
        """Returns one image, uint8 [H, W, 3]."""

    def name(self, index: int) -> str:
        """Returns what to call the image in a message or report."""

    def digest(self) -> str:
        """Returns the sha256 of which images, classes and labels these are."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class ArrayImageSet:
    """Images in memory.

    Args:
        images: uint8 [I, H, W, 3].
        labels_I: [I] integers in 0 .. C-1.
        class_names: [C] names.
        attributes_IA: [I, A] integers, or None.

    Raises:
        DataError: shapes, dtypes or labels do not fit each other.
    """

    images: np.ndarray
    labels_I: np.ndarray
    class_names: tuple[str, ...]
    attributes_IA: np.ndarray | None = None

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels_I, dtype=np.int64)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise DataError(f"images of shape {images.shape}, {images.dtype}", expected="uint8 [I, H, W, 3]")
        if labels.shape != images.shape[:1]:
            raise DataError(f"{len(images)} images with labels of shape {labels.shape}", expected="one label per image")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise DataError(
                f"labels from {labels.min()} to {labels.max()}",
                expected=f"0 to {len(self.class_names) - 1}, the classes",
            )
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels_I", labels)
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.attributes_IA is not None:
            attributes = np.asarray(self.attributes_IA, dtype=np.int64)
            if attributes.ndim != 2 or len(attributes) != len(images):
                raise DataError(f"attributes of shape {attributes.shape}", expected=f"[{len(images)}, A]")
            object.__setattr__(self, "attributes_IA", attributes)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> np.ndarray:
        """Returns one image, uint8 [H, W, 3]."""
        image: np.ndarray = self.images[index]
        return image

    def name(self, index: int) -> str:
        """Returns ``class name/index``."""
        return f"{self.class_names[self.labels_I[index]]}/{index}"

    def digest(self) -> str:
        """Returns the sha256 over pixels, labels and class names."""
        sha = hashlib.sha256(repr((self.images.shape, self.class_names)).encode())
        sha.update(np.ascontiguousarray(self.images).data)
        sha.update(np.ascontiguousarray(self.labels_I).data)
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class FolderImageSet:
    """Images on disk, read when they are asked for.

    Args:
        root: folder of the data set.
        files: [I] paths below the root.
        sizes_bytes: [I] size of each file when it was listed.
        labels_I: [I] int64 in 0 .. C-1.
        class_names: [C] names.
        image_size: side of the square that images are scaled to, pixels.
    """

    root: Path
    files: tuple[str, ...]
    sizes_bytes: tuple[int, ...]
    labels_I: np.ndarray
    class_names: tuple[str, ...]
    image_size: int
    attributes_IA: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> np.ndarray:
        """Returns one image, uint8 [image_size, image_size, 3].

        Raises:
            DataError: the file is damaged, or gone since it was listed.
        """
        return read_image(self.root / self.files[index], self.image_size)

    def name(self, index: int) -> str:
        """Returns the path below the root."""
        return self.files[index]

    def digest(self) -> str:
        """Returns the sha256 over names, sizes, labels and classes (not contents: that would read every image)."""
        rows = [self.class_names, *zip(self.files, self.sizes_bytes, self.labels_I.tolist(), strict=True)]
        return hashlib.sha256(repr(rows).encode("utf-8", "backslashreplace")).hexdigest()


@dataclass(frozen=True, eq=False)
class Splits:
    """Class-disjoint parts of a data set.

    Args:
        train: classes to train on.
        val: classes held out of the training classes for model selection; None when none are.
        test: unseen classes, for evaluation only.
        probe: images of further classes to fit linear probes on, where the data has attributes.
        attribute_names: [A] names of the attributes, where the data has them.
    """

    train: ImageSet
    val: ImageSet | None
    test: ImageSet
    probe: ImageSet | None = None
    attribute_names: tuple[str, ...] = ()

    def named(self, name: str) -> ImageSet:
        """Returns a split by name.

        Raises:
            DataError: no such split, or this data set has none.
        """
        images = {"train": self.train, "val": self.val, "test": self.test, "probe": self.probe}.get(name)
        if images is None:
            raise DataError(f"no split {name!r} in this data set", expected=f"one of {', '.join(self.names)}")
        return images

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the splits that exist."""
        parts = (("train", self.train), ("val", self.val), ("test", self.test), ("probe", self.probe))
        return tuple(name for name, images in parts if images is not None)

    def split_hash(self) -> str:
        """Returns the sha256 over all splits: equal exactly when images, classes and their division are equal."""
        rows = [(name, self.named(name).digest()) for name in self.names]
        return hashlib.sha256(repr(rows).encode()).hexdigest()


def load_folder(
    root: str | Path,
    *,
    train_classes: str | Path | None = None,
    test_classes: str | Path | None = None,
    val_fraction: float = 0.2,
    image_size: int = 224,
    seed: int = 0,
) -> Splits:
    """Returns the splits of ``root/<class>/<image>``, a function of the files and the arguments only.

    Without lists, the classes sorted by name (code points) are halved: the first half trains, the second tests. With
    one list, the other side is every class that the list leaves; with two, other classes are ignored. Validation
    classes are drawn from the training classes. Hidden files and files without an image suffix are skipped.

    Args:
        root: folder of the data set; may itself be a link.
        train_classes: file with one class name per line, UTF-8.
        test_classes: likewise.
        val_fraction: share of the training classes held out for model selection, at least two classes unless 0.
        image_size: side of the square that images are scaled to, pixels.
        seed: of the choice of validation classes.

    Raises:
        DataError: anything wrong with folder, lists or classes.
    """
    folder = _Folder(root)
    train, test = _divide(folder, train_classes, test_classes)
    val = _hold_out(train, val_fraction, seed, folder.root)
    train = [name for name in train if name not in val]
    if not test:
        raise DataError(f"{len(train)} classes and none to test on", where=str(folder.root), fix="add class folders")
    parts = [folder.images(names, image_size) if names else None for names in (train, val, test)]
    for images in parts[:2]:
        _check_class_sizes(images, folder.root)
    assert parts[0] is not None and parts[2] is not None
    return Splits(parts[0], parts[1], parts[2])


@dataclass(frozen=True, slots=True)
class _Entry:
    """One visible name of a folder."""

    name: str
    status: os.stat_result
    real: Path
    """Where it really lies, links resolved."""


class _Folder:
    """Lists a data set's folder, once, without leaving it."""

    def __init__(self, root: str | Path) -> None:
        if not str(root):
            raise DataError("no folder given", where="data.root", expected="the folder of the data set")
        try:
            self.root = Path(root).resolve(strict=True)
            folders = [entry for entry in self._entries(self.root) if stat.S_ISDIR(entry.status.st_mode)]
        except (OSError, ValueError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise DataError(f"cannot read the data set ({reason})", where=str(root), fix="check data.root") from error
        self._folders = {entry.name: entry.real for entry in sorted(folders, key=lambda entry: entry.name)}
        self._seen: dict[Path, str] = {}
        self.classes = list(self._folders)
        if len(self.classes) < 2:
            raise DataError(
                f"{len(self.classes)} class folders",
                where=str(self.root),
                expected="root/<class>/<image>",
                fix="check data.root",
            )
        for name in self.classes:
            if not name.isprintable():
                raise DataError(f"class folder {name!r}", where=str(self.root), expected="a printable UTF-8 name")

    def images(self, class_names: Sequence[str], image_size: int) -> FolderImageSet:
        """Returns the images of the given classes, sorted by class and name."""
        files: list[tuple[str, int]] = []
        labels: list[int] = []
        for label, class_name in enumerate(class_names):
            listed = sorted(self._class_files(class_name))
            if not listed:
                raise DataError(
                    "no images",
                    where=str(self.root / class_name),
                    expected=", ".join(SUFFIXES),
                    fix="add images or remove the folder",
                )
            files += listed
            labels += [label] * len(listed)
        return FolderImageSet(
            root=self.root,
            files=tuple(path for path, _ in files),
            sizes_bytes=tuple(size for _, size in files),
            labels_I=np.array(labels, np.int64),
            class_names=tuple(class_names),
            image_size=image_size,
        )

    def _class_files(self, class_name: str) -> Iterator[tuple[str, int]]:
        for entry in self._entries(self._folders[class_name]):
            if not entry.name.lower().endswith(SUFFIXES):
                continue
            path = f"{class_name}/{entry.name}"
            if not stat.S_ISREG(entry.status.st_mode):
                raise DataError("not a regular file", where=str(self.root / path), expected="an image", fix="remove it")
            # One file under two names could be in training and test at once.
            other = self._seen.setdefault(entry.real, path)
            if other != path:
                raise DataError(f"the same file as {other}", where=str(self.root / path), fix="remove the link")
            yield path, entry.status.st_size

    def _entries(self, folder: Path) -> Iterator[_Entry]:
        """Yields the visible entries; links are followed inside the root only."""
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    path = Path(entry.path)
                    real = self._target(path) if entry.is_symlink() else path
                    yield _Entry(entry.name, entry.stat(), real)

    def _target(self, link: Path) -> Path:
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise DataError("a link to nowhere", where=str(link), fix="remove it") from error
        if not target.is_relative_to(self.root):
            raise DataError(f"a link out of the data set (to {target})", where=str(link), fix="copy the file instead")
        return target


def _divide(
    folder: _Folder, train_list: str | Path | None, test_list: str | Path | None
) -> tuple[list[str], list[str]]:
    train = _read_list(train_list, folder) if train_list else None
    test = _read_list(test_list, folder) if test_list else None
    if train is None and test is None:
        half = len(folder.classes) // 2
        return folder.classes[:half], folder.classes[half:]
    if train is None:
        train = [name for name in folder.classes if name not in set(test or ())]
    if test is None:
        test = [name for name in folder.classes if name not in set(train)]
    both = sorted(set(train) & set(test))
    if both:
        raise DataError(
            f"class {both[0]!r} is also in {train_list}",
            where=str(test_list),
            expected="disjoint lists",
            fix="remove it from one",
        )
    return sorted(train), sorted(test)


def _read_list(path: str | Path, folder: _Folder) -> list[str]:
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(
            f"cannot read the class list ({reason})", where=str(path), expected="one class per line"
        ) from error
    if text.startswith("\ufeff"):
        raise DataError(
            "the class list begins with a byte order mark", where=f"{path}:1", fix="save it as UTF-8 without BOM"
        )
    known, lines = set(folder.classes), dict[str, int]()
    for number, line in enumerate(text.split("\n"), start=1):
        name = line.strip()
        if not name:
            continue
        if name not in known:
            close = difflib.get_close_matches(name, folder.classes, n=1)
            fix = f"did you mean {close[0]!r}?" if close else "correct or remove the line"
            raise DataError(
                f"unknown class {name!r}", where=f"{path}:{number}", expected=f"a folder of {folder.root}", fix=fix
            )
        if name in lines:
            raise DataError(
                f"class {name!r} again (first in line {lines[name]})", where=f"{path}:{number}", fix="remove it"
            )
        lines[name] = number
    if not lines:
        raise DataError("the class list is empty", where=str(path), expected="one class per line")
    return list(lines)


def _hold_out(train: Sequence[str], val_fraction: float, seed: int, root: Path) -> list[str]:
    """Returns the validation classes, sorted."""
    # One class alone would make every retrieval right.
    num_val = max(2, round(val_fraction * len(train))) if val_fraction > 0 else 0
    if len(train) - num_val < 2:
        raise DataError(
            f"{len(train)} training classes of which {num_val} are for validation",
            where=str(root),
            expected="at least two left to train on",
            fix="add classes" if not num_val else "lower data.val_fraction, or set it to 0 and have no model selection",
        )
    drawn = counter_generator(seed, "validation classes").permutation(len(train))[:num_val]
    return sorted(train[index] for index in drawn)


def _check_class_sizes(images: FolderImageSet | None, root: Path) -> None:
    if images is None:
        return
    counts = np.bincount(images.labels_I, minlength=len(images.class_names))
    if counts.min() < 2:
        name = images.class_names[int(counts.argmin())]
        raise DataError(
            f"{counts.min()} image in a training class",
            where=str(root / name),
            expected="at least 2",
            fix="add images or remove it",
        )
