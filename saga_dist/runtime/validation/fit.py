"""Settings that fit a small data set: batch, images per class, pairs and validation classes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from saga_dist.config import RunConfig
from saga_dist.data.check import class_sizes
from saga_dist.data.layouts import load_splits
from saga_dist.data.layouts.division import hold_out
from saga_dist.errors import DataError


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Images by class of a data set, before validation classes are drawn."""

    training: Mapping[str, int]
    """Images of each training class, in the order of the labels, with the classes that are drawn for validation."""
    test: Collection[int]
    """Images of each test class."""
    draws_validation: bool = True
    """True when ``data.val_fraction`` draws validation classes; False when the data set lists its own."""


def read_class_counts(config: RunConfig) -> ClassCounts:
    """Returns the class counts of the configured data set, whose files are listed and not read.

    Raises:
        DataError: the data set cannot be listed, or has fewer than two training classes.
    """
    undivided = config.data.model_copy(update={"val_fraction": 0.0, "split_hash": ""})
    splits = load_splits(undivided, seed=config.run.seed)  # not cached: nothing trains on this division
    return ClassCounts(
        training=dict(class_sizes(splits.train)),
        test=[size for _, size in class_sizes(splits.test)],
        draws_validation=splits.val is None,
    )


def fitting_overrides(config: RunConfig, counts: ClassCounts) -> list[str]:
    """Returns ``section.key=value`` for the settings that must change for a data set; empty when all of them fit.

    Every value stays as close to the configured one as the data set allows, and is never larger.

    Args:
        config: configuration of the run.
        counts: class counts of the data set.

    Raises:
        DataError: no setting fits.
    """
    data, rollout = config.data, config.rollout
    val_fraction, train = _divide(config, counts)
    per_class = min(data.images_per_class, *train.values())
    if len(train) < 2 or per_class < 2:
        raise DataError(
            f"{len(train)} training classes, the smallest with {min(train.values())} images",
            where=data.root,
            expected="at least 2 classes with 2 images each",
            fix="add images",
        )
    batch = per_class * min(len(train), data.batch_size // per_class)
    if batch < config.runtime.learner_processes:
        raise DataError(
            f"micro-batches of at most {batch} images for {config.runtime.learner_processes} learner processes",
            where=data.root,
            fix="lower runtime.learner_processes or add images",
        )
    judged = config.evaluation.verdict_pairs
    wanted = {
        "data.val_fraction": (val_fraction, data.val_fraction),
        "data.batch_size": (batch, data.batch_size),
        "data.images_per_class": (per_class, data.images_per_class),
        "rollout.pairs_per_batch": (min(rollout.pairs_per_batch, batch - batch % 2), rollout.pairs_per_batch),
        "evaluation.verdict_pairs": (_verdict_pairs(judged, train.values(), counts.test), judged),
    }
    return [f"{key}={value:g}" for key, (value, configured) in wanted.items() if value != configured]


def fit_to_data(config: RunConfig) -> list[str]:
    """Returns the overrides with which the configured data set can be trained on; see ``fitting_overrides``."""
    if config.data.layout == "birds":
        raise DataError("the built-in birds have the size that data.birds sets", where="--fit-to-data", fix="remove it")
    return fitting_overrides(config, read_class_counts(config))


def _divide(config: RunConfig, counts: ClassCounts) -> tuple[float, dict[str, int]]:
    """Returns the share of validation classes, the configured one or 0, and the classes that are left for training."""
    names, configured = list(counts.training), config.data.val_fraction
    if not counts.draws_validation or not configured:
        return configured, dict(counts.training)
    try:
        held_out = set(hold_out(names, configured, config.run.seed, where=config.data.root))
    except DataError:
        return 0.0, dict(counts.training)
    return configured, {name: size for name, size in counts.training.items() if name not in held_out}


def _verdict_pairs(configured: int, train: Collection[int], test: Collection[int]) -> int:
    """Returns the most evaluation pairs, up to the configured number, that both training and test classes have."""
    limits = [configured]
    for sizes in (train, test):
        same = sum(math.comb(size, 2) for size in sizes)
        different = math.comb(sum(sizes), 2) - same
        limits += [2 * same + 1, 2 * different]
    return min(limits)
