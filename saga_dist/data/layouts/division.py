"""Dividing classes into training, validation and test, and comparing the result with the published split."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saga_dist.data.image_sets import FolderImageSet, Splits
from saga_dist.data.layouts.listing import ClassFiles
from saga_dist.errors import DataError
from saga_dist.utils.rng import counter_generator

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How to divide and read a data set.

    Args:
        val_fraction: share of the training classes held out for model selection, at least two classes unless 0; with
            0 all of them train, as in the paper.
        image_size: side of the square that images are scaled to, pixels.
        seed: of the choice of validation classes.
        fast_jpeg: decode large JPEG files at a reduced scale.
    """

    val_fraction: float = 0.2
    image_size: int = 224
    seed: int = 0
    fast_jpeg: bool = False


@dataclass(frozen=True, slots=True)
class PublishedSplit:
    """The size of a benchmark's split, validation classes counted as training classes."""

    name: str
    train_classes: int
    test_classes: int
    train_images: int
    test_images: int
    gallery_images: int = 0


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
    """Returns the splits of listed files.

    Args:
        files: the images of all classes.
        train: training classes, validation classes among them unless ``val`` is given.
        test: test classes, in the order of their labels.
        options: see there.
        published: the benchmark's size. A set with as many classes must have as many images; another set is only
            warned about, since its figures cannot be compared with the published ones.
        val: validation classes; drawn from ``train`` when None.
        gallery: images of the test classes that queries search, where the data has such; made ``beside`` the files.
        banner: rows at the bottom of every image that are not part of it, pixels.
        drop_lone: leave training classes with one image out, with a warning, instead of refusing them: for lists
            that the user did not write.

    Raises:
        DataError: files are missing, the benchmark is incomplete, or classes or their images are too few.
    """
    files.refuse_missing()
    if published is not None:
        _compare(files, train, test, gallery, published)
    if drop_lone:
        train = _without_lone(files, train)
    if val is None:
        val = _hold_out(train, options, files.root)
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
    )


def halves(classes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the first half, rounded down, and the rest."""
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


def _hold_out(train: Sequence[str], options: SplitOptions, root: Path) -> list[str]:
    """Returns the validation classes, in the order of the training classes."""
    # One class alone would make every retrieval right.
    num_val = max(2, round(options.val_fraction * len(train))) if options.val_fraction > 0 else 0
    if len(train) - num_val < 2:
        raise DataError(
            f"{len(train)} training classes of which {num_val} are for validation",
            where=str(root),
            expected="at least two left to train on",
            fix="add classes" if not num_val else "lower data.val_fraction, or set it to 0 and have no model selection",
        )
    drawn = counter_generator(options.seed, "validation classes").permutation(len(train))[:num_val]
    return [train[index] for index in sorted(drawn.tolist())]


def _check_class_size(files: ClassFiles, name: str) -> None:
    if files.size(name) == 1:
        raise DataError(
            f"class {name!r} has 1 image in training",
            where=str(files.root),
            expected="at least 2",
            fix="add images or remove it",
        )
