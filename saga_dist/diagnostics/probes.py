"""Linear probes on unseen classes, fitted on one half of the classes and tested on the other, both ways.

A probe that met the classes it is tested on could learn the classes and look up their attributes; here it cannot. The
price is few classes to fit on (half of the unseen ones), so the figures are lower than those of ``results.json``, whose
probes are fitted on a thousand further species where the data has them.

The read-out is one-against-all ridge regression on standardised features; its penalty is chosen inside the fitting half
alone, by the same crossing of classes, so that 64 and 3,200 features are judged alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from saga_dist.errors import DataError
from saga_dist.utils.rng import counter_generator

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties per fitted image, to choose from."""
FEWEST_CLASSES = 4
"""Halves of halves hold a class each."""


@dataclass(frozen=True, slots=True)
class ProbePredictions:
    """What the probes said about each image while its class was in the other half."""

    right_IA: np.ndarray
    """bool [I, A]."""
    chance_IA: np.ndarray
    """bool [I, A]: whether always naming the commonest value of the fitting half would have been right."""


def crossed_probe(
    features_IF: np.ndarray, values_IA: np.ndarray, labels_I: np.ndarray, *, seed: int
) -> ProbePredictions:
    """Returns which attribute values linear read-outs get right on classes that they were not fitted on.

    Args:
        features_IF: [I, F] floating, finite.
        values_IA: [I, A] integers.
        labels_I: [I] integers, at least four classes.
        seed: of the division of the classes.

    Raises:
        DataError: too few classes, or shapes or values do not fit.
    """
    features, values, labels = np.asarray(features_IF, np.float64), np.asarray(values_IA), np.asarray(labels_I)
    if features.ndim != 2 or values.ndim != 2 or not len(features) == len(values) == len(labels):
        raise DataError(f"features {features.shape}, values {values.shape}", expected="[I, F], [I, A] and I labels")
    if not np.isfinite(features).all():
        raise DataError("a feature is NaN or infinite", expected="finite features")
    if len(np.unique(labels)) < FEWEST_CLASSES:
        raise DataError(f"{len(np.unique(labels))} classes", expected=f"at least {FEWEST_CLASSES} to cross")
    right, chance = np.zeros(values.shape, bool), np.zeros(values.shape, bool)
    first = class_half(labels, seed)
    for test in (first, ~first):
        fit = ~test
        penalty = _best_penalty(features[fit], values[fit], labels[fit], seed)
        (predicted,) = _predictions(features[fit], values[fit], features[test], [penalty])
        right[test] = predicted == values[test]
        chance[test] = _commonest(values[fit]) == values[test]
    return ProbePredictions(right, chance)


def class_half(labels_I: np.ndarray, seed: int) -> np.ndarray:
    """Returns bool [I]: the images of one half of the classes (rounded down), drawn by ``seed``."""
    classes = np.unique(labels_I)
    drawn = counter_generator("probe halves", seed).permutation(classes)[: len(classes) // 2]
    return np.isin(labels_I, drawn)


def _best_penalty(features_IF: np.ndarray, values_IA: np.ndarray, labels_I: np.ndarray, seed: int) -> float:
    """The penalty that is right most often when the fitting half is itself crossed by classes."""
    num_right = np.zeros(len(PENALTIES))
    first = class_half(labels_I, seed)
    for test in (first, ~first):
        tried = _predictions(features_IF[~test], values_IA[~test], features_IF[test], PENALTIES)
        num_right += [(predicted == values_IA[test]).sum() for predicted in tried]
    return PENALTIES[int(num_right.argmax())]


def _predictions(
    fit_IF: np.ndarray, fit_IA: np.ndarray, test_JF: np.ndarray, penalties: Sequence[float]
) -> Iterator[np.ndarray]:
    """Yields the predicted values [J, A] for each penalty; one factorisation serves them all."""
    mean, spread = fit_IF.mean(0), fit_IF.std(0)
    spread[spread < 1e-12] = 1.0  # a constant feature says nothing, and becomes zero
    fit, test = (fit_IF - mean) / spread, (test_JF - mean) / spread
    known = [np.unique(column) for column in fit_IA.T]
    # Targets of all attributes side by side.
    targets = np.concatenate([column[:, None] == values for column, values in zip(fit_IA.T, known, strict=True)], 1)
    offset = targets.mean(0)
    # The smaller of two equal systems: features by features, or items by items.
    if fit.shape[1] <= len(fit):
        roots, vectors = np.linalg.eigh(fit.T @ fit)
        read, coefficients = test @ vectors, vectors.T @ (fit.T @ (targets - offset))
    else:
        roots, vectors = np.linalg.eigh(fit @ fit.T)
        read, coefficients = (test @ fit.T) @ vectors, vectors.T @ (targets - offset)
    edges = np.cumsum([0, *map(len, known)])
    for penalty in penalties:
        scores = (read / (roots.clip(0) + penalty * len(fit))) @ coefficients + offset
        yield np.stack([values[scores[:, edges[a] : edges[a + 1]].argmax(1)] for a, values in enumerate(known)], axis=1)


def _commonest(values_IA: np.ndarray) -> np.ndarray:
    """[A] the commonest value of each attribute, the smallest among equals."""
    best = []
    for column in values_IA.T:
        values, counts = np.unique(column, return_counts=True)
        best.append(values[counts.argmax()])
    return np.array(best)
