"""Linear probes on unseen classes, fitted on one half of the classes and tested on the other, both ways.

A probe that met the classes it is tested on could learn the classes and look up their attributes; here it cannot. The
price is few classes to fit on (half of the unseen ones), so the figures are lower than those of ``results.json``, whose
probes are fitted on a thousand further species where the data has them.

The read-out is a ridge classifier on standardised features (``retrieval/probe.py``); its penalty is chosen inside the
fitting half alone, by the same crossing of classes, so that 64 and 3,200 features are judged alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saga_dist.errors import DataError
from saga_dist.retrieval.probe import predict_attributes
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
        predicted = predict_attributes(features[fit], values[fit], features[test], ridge=penalty)
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
        fit = ~test
        for index, penalty in enumerate(PENALTIES):
            predicted = predict_attributes(features_IF[fit], values_IA[fit], features_IF[test], ridge=penalty)
            num_right[index] += (predicted == values_IA[test]).sum()
    return PENALTIES[int(num_right.argmax())]


def _commonest(values_IA: np.ndarray) -> np.ndarray:
    """[A] the commonest value of each attribute, the smallest among equals."""
    best = []
    for column in values_IA.T:
        values, counts = np.unique(column, return_counts=True)
        best.append(values[counts.argmax()])
    return np.array(best)
