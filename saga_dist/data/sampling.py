"""Which images and pairs a step sees: pure functions of counters, so that nothing needs to be saved or replayed.

The balanced stream. ``balanced_draw(n, w, position, *key)`` cuts an endless sequence of permutations of n items into
windows of w and returns window number ``position``. Two properties hold together: no window holds an item twice,
although it may straddle two permutations (the second one is drawn so that its head avoids the first one's tail); and
every permutation holds each item once, so that the counts of two items never differ by more than one between windows'
ends, and not at all after whole permutations. Windows and permutations line up again after lcm(n, w) items; a draw
computes that one round at most.

Micro-batch ``index`` of step ``step`` is window ``step`` of stream number ``index``. Dynamic sampling decides late how
many micro-batches a step takes, so one common stream would make a step's batch depend on the steps before it. With one
stream per index, the micro-batches that every step takes (index 0) walk through all classes equally often, and so does
each further index over the steps that use it in a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from saga_dist.config import RunConfig
from saga_dist.errors import DataError
from saga_dist.types import ImagePair, MicroBatch
from saga_dist.utils.rng import counter_generator, counter_seed


def balanced_draw(num_items: int, width: int, position: int, *key: int | str) -> tuple[np.ndarray, np.ndarray]:
    """Returns window ``position`` of the balanced stream over ``num_items`` items.

    Args:
        num_items: n.
        width: w <= n, items per window.
        position: window number, from 0.
        key: names the stream.

    Returns:
        items: int64 [w], distinct.
        turns: int64 [w], how often each item has come before in this stream.
    """
    windows_per_round = math.lcm(num_items, width) // width
    round_number, window = divmod(position, windows_per_round)
    generator = counter_generator(*key, round_number)
    first = window * width
    permutations: list[np.ndarray] = []
    while len(permutations) * num_items < first + width:
        permutations.append(_next_permutation(generator, num_items, width, permutations))
    items = np.concatenate(permutations)[first : first + width]
    permutations_per_round = windows_per_round * width // num_items
    turns = round_number * permutations_per_round + np.arange(first, first + width) // num_items
    return items, turns


def _next_permutation(
    generator: np.random.Generator, num_items: int, width: int, before: Sequence[np.ndarray]
) -> np.ndarray:
    """A permutation whose head, where a window straddles, avoids the tail of the one before."""
    num_tail = len(before) * num_items % width
    if num_tail == 0:
        return generator.permutation(num_items)
    fresh = np.setdiff1d(np.arange(num_items), before[-1][-num_tail:])
    head = generator.permutation(fresh)[: width - num_tail]
    return np.concatenate([head, generator.permutation(np.setdiff1d(np.arange(num_items), head))])


class ClassBalancedSampler:
    """Micro-batches of equally many images from each of several classes.

    Args:
        labels: [I] class of each image.
        batch_size: images per micro-batch.
        images_per_class: images of each class in it.
        seed: of the run.
        class_names: for messages.

    Raises:
        DataError: too few classes, or a class with fewer than ``images_per_class`` images.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        batch_size: int,
        images_per_class: int,
        seed: int,
        class_names: Sequence[str] | None = None,
    ) -> None:
        labels_I = np.asarray(labels, np.int64)
        self._classes, counts = np.unique(labels_I, return_counts=True)
        self._classes_per_batch = batch_size // images_per_class
        self._images_per_class, self._seed = images_per_class, seed
        if batch_size % images_per_class:
            raise DataError(
                f"batch_size = {batch_size}", expected=f"a multiple of images_per_class = {images_per_class}"
            )
        if len(self._classes) < self._classes_per_batch:
            raise DataError(
                f"{len(self._classes)} training classes",
                expected=f"at least {self._classes_per_batch} (batch_size / images_per_class)",
                fix="lower data.batch_size or raise data.images_per_class",
            )
        if counts.min() < images_per_class:
            rarest = int(self._classes[counts.argmin()])
            raise DataError(
                f"training class {class_names[rarest] if class_names else rarest} has {counts.min()} images",
                expected=f"at least images_per_class = {images_per_class}",
                fix="lower data.images_per_class or add images",
            )
        self._images = [np.flatnonzero(labels_I == label) for label in self._classes]

    def micro_batch(self, step: int, index: int, pairs: int) -> MicroBatch:
        """Returns micro-batch ``index`` of a step with ``pairs`` pairs drawn from it, half of them same-class.

        Raises:
            DataError: the batch does not have so many different pairs.
        """
        positions, turns = balanced_draw(
            len(self._classes), self._classes_per_batch, step, self._seed, "classes", index
        )
        image_ids: list[int] = []
        labels: list[int] = []
        for position, turn in zip(positions.tolist(), turns.tolist(), strict=True):
            images, label = self._images[position], int(self._classes[position])
            drawn, _ = balanced_draw(len(images), self._images_per_class, turn, self._seed, "images", index, label)
            image_ids += images[drawn].tolist()
            labels += [label] * len(drawn)
        return MicroBatch(
            step=step,
            index=index,
            image_ids=tuple(image_ids),
            labels=tuple(labels),
            augmentation_seed=counter_seed(self._seed, "augmentation", step, index),
            pairs=draw_pairs(
                image_ids, labels, pairs, (self._seed, "pairs", step, index), prefix=f"s{step:06d}.m{index}.p"
            ),
        )


def draw_pairs(
    image_ids: Sequence[int],
    labels: Sequence[int] | np.ndarray,
    num_pairs: int,
    key: Sequence[int | str],
    *,
    prefix: str,
) -> tuple[ImagePair, ...]:
    """Returns pairs of images, half of them same-class (rounded down), in random order.

    No image is paired with itself, and no two images are paired twice, either way round. All pairs of a kind are
    equally likely, and so are both orders of a pair's images.

    Args:
        image_ids: [I] distinct indices into the split.
        labels: [I] their classes.
        num_pairs: P.
        key: counter of the draw.
        prefix: of the pair ids; a number with at least two digits follows.

    Raises:
        DataError: there are not so many pairs.
    """
    generator = counter_generator(*key)
    ids_I, labels_I = np.asarray(image_ids, np.int64), np.asarray(labels, np.int64)
    by_class = np.argsort(labels_I, kind="stable")
    ids_I, labels_I = ids_I[by_class], labels_I[by_class]
    starts = np.arange(len(ids_I))
    class_ends = np.searchsorted(labels_I, labels_I, side="right")
    num_same = num_pairs // 2
    # The partners of image i that come after it: the rest of its class, then all further classes.
    same = _draw_unordered(generator, starts + 1, class_ends, num_same, "same-class")
    different = _draw_unordered(
        generator, class_ends, np.full_like(starts, len(ids_I)), num_pairs - num_same, "different-class"
    )
    drawn = generator.permutation(np.concatenate([same, different]))
    swapped = generator.random(num_pairs) < 0.5
    drawn[swapped] = drawn[swapped][:, ::-1]
    digits = max(2, len(str(num_pairs - 1)))
    return tuple(
        ImagePair(f"{prefix}{number:0{digits}d}", int(ids_I[a]), int(ids_I[b]), int(labels_I[a]), int(labels_I[b]))
        for number, (a, b) in enumerate(drawn.tolist())
    )


def evaluation_pairs(
    labels: Sequence[int] | np.ndarray, num_pairs: int, seed: int, *, prefix: str = "eval.p"
) -> tuple[ImagePair, ...]:
    """Returns pairs of a whole split, half of the same class; see ``draw_pairs``.

    Args:
        labels: [I] class of each image of the split.
        num_pairs: P.
        seed: of the draw.
        prefix: of the pair ids.
    """
    return draw_pairs(range(len(labels)), labels, num_pairs, (seed, "evaluation pairs"), prefix=prefix)


def _draw_unordered(
    generator: np.random.Generator, first: np.ndarray, end: np.ndarray, count: int, kind: str
) -> np.ndarray:
    """Returns int64 [count, 2]: distinct pairs (i, j), first[i] <= j < end[i], all equally likely."""
    cumulative = np.cumsum(end - first)
    capacity = int(cumulative[-1]) if len(cumulative) else 0
    if count > capacity:
        raise DataError(
            f"{count} {kind} pairs asked of images that have {capacity}",
            fix="lower rollout.pairs_per_batch (training) or evaluation.verdict_pairs (evaluation)",
        )
    ranks = generator.choice(capacity, size=count, replace=False) if count else np.zeros(0, np.int64)
    rows = np.searchsorted(cumulative, ranks, side="right")
    return np.stack([rows, end[rows] - (cumulative[rows] - ranks)], axis=1)


def training_sampler(config: RunConfig, labels_I: np.ndarray) -> ClassBalancedSampler:
    """Returns the micro-batches of a run.

    Args:
        config: of the run.
        labels_I: int64 [I] of its training images.
    """
    data = config.data
    return ClassBalancedSampler(labels_I, data.batch_size, data.images_per_class, seed=config.run.seed)
