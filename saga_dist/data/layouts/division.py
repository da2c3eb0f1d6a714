"""Divides classes into training, validation and test, and compares the result with the published split."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from saga_dist.data.image_sets import FolderImageSet, Splits
from saga_dist.data.layouts.listing import ClassFiles
from saga_dist.data.left_out import LeftOut, refuse_unreadable
from saga_dist.errors import DataError
from saga_dist.utils.rng import counter_generator

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """Options for the division and the reading of a data set.

    Args:
        val_fraction: share of the training classes, in [0, 1), that are held out for model selection, at least two
            classes unless it is 0; with 0 all of them are used for training, as in the paper.
        image_size: side of the square that images are scaled to, pixels.
        seed: seed of the choice of validation classes.
        fast_jpeg: True to decode large JPEG files at a reduced scale (see ``read_image``).
    """

    val_fraction: float = 0.2
    image_size: int = 224
    seed: int = 0
    fast_jpeg: bool = False


@dataclass(frozen=True, slots=True)
class PublishedSplit:
    """Numbers of classes and images in the published split of a benchmark.

    Validation classes count as training classes.
    """

    name: str
    """Name of the benchmark."""
    train_classes: int
    test_classes: int
    train_images: int
    test_images: int
    """Images of the test classes; for a benchmark with a gallery, the queries."""
    gallery_images: int = 0
    """Images of the gallery; 0 for a benchmark without a gallery."""


class SplitError(DataError):
    """The images of a data set are listed, but cannot be divided into splits; they can still be checked."""

    listed: Mapping[str, FolderImageSet]
    """The listed images, by a name for their part of the data set."""
    left_out: tuple[LeftOut, ...]
    """Files that were left out of the listing."""


@contextmanager
def dividing(parts: Mapping[str, ClassFiles], options: SplitOptions, *, banner: int = 0) -> Iterator[None]:
    """Converts a DataError in the body of ``with`` to a SplitError with the listed images.

    Args:
        parts: the listed files, by a name for their part of the data set.
        options: image size and reading of the listed images.
        banner: rows at the bottom of every image that are not part of it, pixels.

    Raises:
        SplitError: the body raised a DataError, of which it has the message.
    """
    try:
        yield
    except DataError as error:
        wrapped = SplitError(str(error))
        wrapped.listed = {
            name: part.images(
                [class_name for class_name in part.classes if part.size(class_name)],
                image_size=options.image_size,
                banner=banner,
                fast_jpeg=options.fast_jpeg,
            )
            for name, part in parts.items()
        }
        wrapped.left_out = tuple(one for part in parts.values() for one in part.left_out)
        raise wrapped from error


def make_splits(
    files: ClassFiles,
    train: Sequence[str],
    test: Sequence[str],
    options: SplitOptions,
    *,
    published: PublishedSplit | None = None,
    val: Sequence[str] | None = None,
    gallery: ClassFiles | None = None,
    banner: int = 0,
    drop_lone: bool = False,
) -> Splits:
    """Returns the splits of a data set from its listed files.

    Args:
        files: images of all classes.
        train: training classes, in the order of their labels; they include the validation classes unless ``val`` is
            given.
        test: test classes, in the order of their labels.
        options: share of validation classes, seed and image size.
        published: numbers of the benchmark. A data set with the same numbers of classes must have the same numbers of
            images; for other numbers of classes there is only a warning that results are not comparable.
        val: validation classes; None to draw them from ``train``.
        gallery: for data with a separate gallery, its images; created with ``beside=files``.
        banner: rows at the bottom of every image that are not part of it, pixels.
        drop_lone: True to leave out training classes with one image, with a warning, instead of raising an error; for
            lists that come with a benchmark.

    Raises:
        SplitError: files are missing or unreadable, the benchmark is incomplete, or there are too few classes or images
            of a class.
    """
    parts = {"all": files} if gallery is None else {"all": files, "gallery": gallery}
    with dividing(parts, options, banner=banner):
        return _divide(files, train, test, options, published, val, gallery, banner=banner, drop_lone=drop_lone)


def _divide(
    files: ClassFiles,
    train: Sequence[str],
    test: Sequence[str],
    options: SplitOptions,
    published: PublishedSplit | None,
    val: Sequence[str] | None,
    gallery: ClassFiles | None,
    *,
    banner: int,
    drop_lone: bool,
) -> Splits:
    files.refuse_missing()
    refuse_unreadable(files.left_out, files.root)
    if published is not None:
        _compare(files, train, test, gallery, published)
    if drop_lone:
        train = _without_lone(files, train)
    if val is None:
        val = hold_out(train, options.val_fraction, options.seed, where=str(files.root))
        train = [name for name in train if name not in set(val)]
    if len(train) < 2:
        raise DataError(f"{len(train)} training classes", where=str(files.root), expected="at least 2")
    if not test:
        raise DataError(f"{len(train)} classes and none to test on", where=str(files.root), fix="add classes")
    for name in (*train, *val):
        _check_class_size(files, name)

    def images(part: ClassFiles, names: Sequence[str], *, allow_empty: bool = False) -> FolderImageSet:
        return part.images(
            names,
            image_size=options.image_size,
            banner=banner,
            fast_jpeg=options.fast_jpeg,
            allow_empty=allow_empty,
        )

    return Splits(
        train=images(files, train),
        val=images(files, val) if val else None,
        test=images(files, test, allow_empty=gallery is not None),
        gallery=None if gallery is None else images(gallery, test, allow_empty=True),
        left_out=tuple(files.left_out),
    )


def halves(classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the first half of the classes, rounded down, and the rest."""
    return list(classes[: len(classes) // 2]), list(classes[len(classes) // 2 :])


def _compare(
    files: ClassFiles, train: Sequence[str], test: Sequence[str], gallery: ClassFiles | None, published: PublishedSplit
) -> None:
    if (len(train), len(test)) != (published.train_classes, published.test_classes):
        _LOG.warning(
            "%s: %d training and %d test classes, not the %d and %d of %s: not comparable with published figures",
            files.root, len(train), len(test), published.train_classes, published.test_classes, published.name,
        )  # fmt: skip
        return
    found = {
        "training": (sum(files.size(name) for name in train), published.train_images),
        "test": (sum(files.size(name) for name in test), published.test_images),
        "gallery": (sum(gallery.size(name) for name in test) if gallery else 0, published.gallery_images),
    }
    for part, (count, expected) in found.items():
        if count != expected:
            raise DataError(
                f"{count:,} {part} images in all classes of {published.name}",
                where=str(files.root),
                expected=f"{expected:,}, the published split",
                fix="complete the data set from the original",
            )
    _LOG.info("%s: all images of %s", files.root, published.name)


def _without_lone(files: ClassFiles, train: Sequence[str]) -> list[str]:
    lone = [name for name in train if files.size(name) == 1]
    if lone:
        _LOG.warning(
            "%s: %d training classes have one image and are left out (%s)", files.root, len(lone), ", ".join(lone[:3])
        )
    return [name for name in train if files.size(name) != 1]


def hold_out(train: Sequence[str], val_fraction: float, seed: int, *, where: str) -> list[str]:
    """Returns randomly drawn validation classes, in the order of the training classes.

    Args:
        train: training classes, in the order of their labels.
        val_fraction: share of them that is drawn, at least two classes; 0: none.
        seed: seed of the draw.
        where: folder of the data set, for the error.

    Raises:
        DataError: fewer than two classes are left to train on.
    """
    # At least two classes: with one class every retrieval would be correct.
    num_val = max(2, round(val_fraction * len(train))) if val_fraction > 0 else 0
    if len(train) < 2:
        raise DataError(
            f"{len(train)} training classes",
            where=where,
            expected="at least 2",
            fix="add classes (where no list divides them, half of the classes train, so that 4 are needed)",
        )
    if len(train) - num_val < 2:
        raise DataError(
            f"{len(train)} training classes of which {num_val} are for validation",
            where=where,
            expected="at least two left to train on",
            fix="lower data.val_fraction, or set it to 0 and have no model selection",
        )
    drawn = counter_generator(seed, "validation classes").permutation(len(train))[:num_val]
    return [train[index] for index in sorted(drawn.tolist())]


def _check_class_size(files: ClassFiles, name: str) -> None:
    if files.size(name) == 1:
        raise DataError(
            f"class {name!r} has 1 image in training",
            where=str(files.root),
            expected="at least 2",
            fix="add images or remove it",
        )
