"""Sampling of micro-batches and pairs as pure functions of counters, so that there is no sampler state to save.

The balanced stream: ``balanced_draw(n, w, position, *key)`` cuts an endless sequence of permutations of n items into
windows of w items and returns window number ``position``. The stream has two properties. No window contains an item
twice, although a window may span two permutations: the head of the second one is drawn without the items in the tail of
the first. And every permutation contains each item once, so that at the end of a window the counts of two items differ
by at most one, and after whole permutations not at all. Windows and permutations are aligned again after lcm(n, w)
items; a draw computes at most one such round.

Micro-batch ``index`` of step ``step`` is window ``step`` of stream number ``index``. With dynamic sampling the number
of micro-batches of a step is not known in advance, so with one common stream a step's batches would depend on the steps
before it. With one stream per index, the micro-batches with index 0, which every step uses, contain all classes equally
often, and so do those of each further index over consecutive steps that use it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from saga_dist.config import RunConfig
from saga_dist.data.class_sizes import check_class_sizes, check_pair_capacity
from saga_dist.types import ImagePair, MicroBatch
from saga_dist.utils.rng import counter_generator, counter_seed


def balanced_draw(num_items: int, width: int, position: int, *key: int | str) -> tuple[np.ndarray, np.ndarray]:
    """Returns window ``position`` of the balanced stream over ``num_items`` items.

    Args:
        num_items: n, number of items.
        width: w <= n, items per window.
        position: window number, from 0.
        key: key of the stream.

    Returns:
        items: int64 [w], distinct, in 0 .. n - 1.
        turns: int64 [w], number of earlier occurrences of each item in this stream.
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
    """Returns the next permutation; the head that shares a window with the previous one avoids that one's tail."""
    num_tail = len(before) * num_items % width
    if num_tail == 0:
        return generator.permutation(num_items)
    fresh = np.setdiff1d(np.arange(num_items), before[-1][-num_tail:])
    head = generator.permutation(fresh)[: width - num_tail]
    return np.concatenate([head, generator.permutation(np.setdiff1d(np.arange(num_items), head))])


class ClassBalancedSampler:
    """Samples micro-batches that have the same number of images from each of several classes.

    Args:
        labels: [I] class of each image.
        batch_size: images per micro-batch, a multiple of ``images_per_class``.
        images_per_class: images of each class in a micro-batch.
        seed: seed of the run.
        class_names: [C] names of the classes, for error messages.

    Raises:
        DataError: ``batch_size`` is no multiple of ``images_per_class``, there are too few classes, or a class has
            fewer than ``images_per_class`` images.
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
        names = [class_names[label] if class_names else str(label) for label in self._classes.tolist()]
        check_class_sizes(dict(zip(names, counts.tolist(), strict=True)), batch_size, images_per_class)
        self._classes_per_batch = batch_size // images_per_class
        self._images_per_class, self._seed = images_per_class, seed
        self._images = [np.flatnonzero(labels_I == label) for label in self._classes]

    def micro_batch(self, step: int, index: int, pairs: int) -> MicroBatch:
        """Returns micro-batch ``index`` of a step, with pairs drawn from it, half of them same-class.

        Args:
            step: optimizer steps done before this one.
            index: number of the micro-batch within the step, from 0.
            pairs: number of pairs.

        Raises:
            DataError: the batch has fewer different pairs.
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

    No image is paired with itself, and no two images are paired twice, in either order. All pairs of a kind are equally
    likely, and so are both orders of a pair's images.

    Args:
        image_ids: [I] distinct indices into the split.
        labels: [I] class of each image.
        num_pairs: number of pairs P.
        key: key of the draw.
        prefix: prefix of the pair ids; a number with at least two digits follows.

    Raises:
        DataError: there are fewer different pairs of a kind.
    """
    generator = counter_generator(*key)
    ids_I, labels_I = np.asarray(image_ids, np.int64), np.asarray(labels, np.int64)
    by_class = np.argsort(labels_I, kind="stable")
    ids_I, labels_I = ids_I[by_class], labels_I[by_class]
    starts = np.arange(len(ids_I))
    class_ends = np.searchsorted(labels_I, labels_I, side="right")
    num_same = num_pairs // 2
    # Images are sorted by class: the images after image i are the rest of its class, then all further classes.
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
    """Returns pairs of images of a whole split, half of them same-class; see ``draw_pairs``.

    Args:
        labels: [I] class of each image of the split.
        num_pairs: number of pairs P.
        seed: seed of the draw.
        prefix: prefix of the pair ids.
    """
    return draw_pairs(range(len(labels)), labels, num_pairs, (seed, "evaluation pairs"), prefix=prefix)


def _draw_unordered(
    generator: np.random.Generator, first: np.ndarray, end: np.ndarray, count: int, kind: str
) -> np.ndarray:
    """Returns int64 [count, 2]: distinct pairs (i, j), first[i] <= j < end[i], all equally likely."""
    cumulative = np.cumsum(end - first)
    capacity = int(cumulative[-1]) if len(cumulative) else 0
    check_pair_capacity(count, capacity, kind)
    ranks = generator.choice(capacity, size=count, replace=False) if count else np.zeros(0, np.int64)
    rows = np.searchsorted(cumulative, ranks, side="right")
    return np.stack([rows, end[rows] - (cumulative[rows] - ranks)], axis=1)


def training_sampler(config: RunConfig, labels_I: np.ndarray) -> ClassBalancedSampler:
    """Returns the sampler of a run's micro-batches.

    Args:
        config: configuration of the run.
        labels_I: int64 [I], classes of the training images.
    """
    data = config.data
    return ClassBalancedSampler(labels_I, data.batch_size, data.images_per_class, seed=config.run.seed)
