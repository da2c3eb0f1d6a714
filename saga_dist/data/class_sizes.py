"""Checks of class sizes: whether micro-batches and pairs can be drawn from them; imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from saga_dist.errors import DataError


def check_class_sizes(sizes: Mapping[str, int], batch_size: int, images_per_class: int) -> None:
    """Checks that class-balanced micro-batches can be drawn from training classes.

    Args:
        sizes: number of images by the name of the class.
        batch_size: images per micro-batch.
        images_per_class: images of each class in a micro-batch.

    Raises:
        DataError: ``batch_size`` is no multiple of ``images_per_class``, there are too few classes, or a class has
            fewer than ``images_per_class`` images.
    """
    if batch_size % images_per_class:
        raise DataError(f"batch_size = {batch_size}", expected=f"a multiple of images_per_class = {images_per_class}")
    if len(sizes) < batch_size // images_per_class:
        raise DataError(
            f"{len(sizes)} training classes",
            expected=f"at least {batch_size // images_per_class} (batch_size / images_per_class)",
            fix="lower data.batch_size or raise data.images_per_class",
        )
    small = sorted((size, name) for name, size in sizes.items() if size < images_per_class)
    if small:
        size, name = small[0]
        more = f" and {len(small) - 1} more classes have too few" if len(small) > 1 else ""
        raise DataError(
            f"training class {name} has {size} images{more}",
            expected=f"at least images_per_class = {images_per_class}",
            fix="lower data.images_per_class or add images",
        )


def check_pair_counts(sizes: Collection[int], num_pairs: int) -> None:
    """Checks that classes have enough different pairs of images of each kind for ``evaluation_pairs``.

    Args:
        sizes: number of images of each class.
        num_pairs: number of pairs P, half of them same-class (rounded down).

    Raises:
        DataError: they have fewer.
    """
    images = sum(sizes)
    same = sum(size * (size - 1) // 2 for size in sizes)
    check_pair_capacity(num_pairs // 2, same, "same-class")
    check_pair_capacity(num_pairs - num_pairs // 2, images * (images - 1) // 2 - same, "different-class")


def check_pair_capacity(count: int, capacity: int, kind: str) -> None:
    """Checks that there are as many different pairs of one kind as asked for.

    Args:
        count: number of pairs asked for.
        capacity: number of different pairs that there are.
        kind: kind of the pairs, for the error.

    Raises:
        DataError: there are fewer.
    """
    if count > capacity:
        raise DataError(
            f"{count} {kind} pairs asked of images that have {capacity}",
            fix="lower rollout.pairs_per_batch (training) or evaluation.verdict_pairs (evaluation)",
        )
