"""Linear probes on unseen classes: two-fold cross-validation whose folds are halves of the classes.

A probe that is fitted on images of the classes that it is tested on could classify the classes, and look up their
attributes. Here the classes of fit and test are disjoint. There are few classes to fit on (half of the unseen ones), so
accuracies are lower than those of ``results.json``, whose probes are fitted on a thousand further species where the
data has them.

The probe is a ridge classifier on standardised features (``retrieval/probe.py``). Its penalty is chosen within the
fitting half, by the same cross-validation over classes, so that probes of 64 and of 3,200 features are comparable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saga_dist.errors import DataError
from saga_dist.retrieval.probe import predict_attributes
from saga_dist.utils.rng import counter_generator

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidate ridge penalties, per fitted image."""
MIN_CLASSES = 4
"""Smallest number of classes: each half is halved again to choose the penalty, and needs a class in both parts."""


@dataclass(frozen=True, slots=True)
class ProbePredictions:
    """Correctness of the predictions for each image, by the probe that was not fitted on its class."""

    correct_IA: np.ndarray
    """bool [I, A], True where the probe predicts the attribute's value."""
    chance_IA: np.ndarray
    """bool [I, A], True where the most frequent value of the fitting half is the attribute's value."""


def crossed_probe(
    features_IF: np.ndarray, values_IA: np.ndarray, labels_I: np.ndarray, *, seed: int
) -> ProbePredictions:
    """Returns the correctness of linear probes on classes that they were not fitted on.

    Args:
        features_IF: [I, F], floating, finite.
        values_IA: [I, A], integers, value of each attribute.
        labels_I: [I], integers, class of each image, at least four classes.
        seed: seed of the division of the classes.

    Raises:
        DataError: there are fewer than ``MIN_CLASSES`` classes, shapes do not fit, or a feature is not finite.
    """
    features, values, labels = np.asarray(features_IF, np.float64), np.asarray(values_IA), np.asarray(labels_I)
    if features.ndim != 2 or values.ndim != 2 or not len(features) == len(values) == len(labels):
        raise DataError(f"features {features.shape}, values {values.shape}", expected="[I, F], [I, A] and I labels")
    if not np.isfinite(features).all():
        raise DataError("a feature is NaN or infinite", expected="finite features")
    if len(np.unique(labels)) < MIN_CLASSES:
        raise DataError(f"{len(np.unique(labels))} classes", expected=f"at least {MIN_CLASSES} to cross")
    correct, chance = np.zeros(values.shape, bool), np.zeros(values.shape, bool)
    first = class_half(labels, seed)
    for test in (first, ~first):
        fit = ~test
        penalty = _best_penalty(features[fit], values[fit], labels[fit], seed)
        predicted = predict_attributes(features[fit], values[fit], features[test], ridge=penalty)
        correct[test] = predicted == values[test]
        chance[test] = _most_frequent(values[fit]) == values[test]
    return ProbePredictions(correct, chance)


def class_half(labels_I: np.ndarray, seed: int) -> np.ndarray:
    """Returns bool [I], True for the images of a random half of the classes (rounded down)."""
    classes = np.unique(labels_I)
    drawn = counter_generator("probe halves", seed).permutation(classes)[: len(classes) // 2]
    return np.isin(labels_I, drawn)


def _best_penalty(features_IF: np.ndarray, values_IA: np.ndarray, labels_I: np.ndarray, seed: int) -> float:
    """Returns the penalty with the most correct predictions in a cross-validation over classes of the fitting half."""
    num_correct = np.zeros(len(PENALTIES))
    first = class_half(labels_I, seed)
    for test in (first, ~first):
        fit = ~test
        for index, penalty in enumerate(PENALTIES):
            predicted = predict_attributes(features_IF[fit], values_IA[fit], features_IF[test], ridge=penalty)
            num_correct[index] += (predicted == values_IA[test]).sum()
    return PENALTIES[int(num_correct.argmax())]


def _most_frequent(values_IA: np.ndarray) -> np.ndarray:
    """Returns the most frequent value of each attribute, [A]; the smallest one in a tie."""
    best = []
    for column in values_IA.T:
        values, counts = np.unique(column, return_counts=True)
        best.append(values[counts.argmax()])
    return np.array(best)
