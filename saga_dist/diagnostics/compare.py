"""Recall@1 and attribute accuracy of unseen images in several feature spaces, before and after training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from saga_dist.diagnostics.clustered import clustered_error
from saga_dist.diagnostics.encoded_images import EncodedImages
from saga_dist.diagnostics.probes import crossed_probe
from saga_dist.diagnostics.schema import (
    EMBEDDING,
    MEAN,
    PRETRAINED,
    READ_OUT,
    TOKENS,
    TRAINED,
    ProbeChange,
    ProbeColumn,
    Probes,
    RecallFigure,
)
from saga_dist.retrieval.metrics import clustered_interval, recall_at_k


def views(observed: EncodedImages, *, trained: bool) -> dict[str, np.ndarray]:
    """Returns the name of each feature space with its features, float32 [I, F].

    The embedding z is left out for the pre-trained encoder, whose pooler is untrained.

    Args:
        observed: the images of one encoder.
        trained: True for the trained encoder.
    """
    found = {EMBEDDING: observed.embeddings_IE} if trained else {}
    found[MEAN] = observed.means_ID
    if observed.flat_IF is not None:
        found[TOKENS] = observed.flat_IF
    return found


def recall_figures(
    observed: Mapping[str, EncodedImages], labels_I: np.ndarray, *, seed: int, resamples: int
) -> tuple[RecallFigure, ...]:
    """Returns Recall@1 of z, of the mean of X and of the MLLM's read-out (Hellinger vectors), ranked by cosine.

    Args:
        observed: ``TRAINED`` and ``PRETRAINED``, each mapped to the same I images seen by that encoder.
        labels_I: [I] integer classes of the images.
        seed: seed of the bootstrap.
        resamples: number of bootstrap resamples of the classes.
    """
    figures = []
    for encoder, images in observed.items():
        spaces = {name: values for name, values in views(images, trained=encoder == TRAINED).items() if name != TOKENS}
        if images.readout is not None:
            spaces[READ_OUT] = images.readout.hellinger()
        for space, values in spaces.items():
            right_I = recall_at_k(values, labels_I, ks=(1,)).correct_at_1_I
            low, high = clustered_interval(right_I, labels_I, seed=seed, num_resamples=resamples)
            figures.append(
                RecallFigure(encoder=encoder, space=space, recall_at_1=float(right_I.mean()), interval=(low, high))
            )
    return tuple(figures)


def probe_figures(
    observed: Mapping[str, EncodedImages],
    values_IA: np.ndarray,
    labels_I: np.ndarray,
    attributes: tuple[str, ...],
    *,
    seed: int,
) -> Probes:
    """Returns the attribute accuracy in every feature space, and its change by training.

    Args:
        observed: ``TRAINED`` and ``PRETRAINED``, each mapped to the same I images seen by that encoder.
        values_IA: [I, A] integers, the true value of each attribute as an index into the words of the read-out.
        labels_I: [I] integer classes of the images.
        attributes: names of the A attributes.
        seed: seed of the division of the classes into halves.
    """
    right: dict[tuple[str, str], np.ndarray] = {}
    chance_IA = np.zeros(values_IA.shape, bool)
    for encoder, images in observed.items():
        for space, features in views(images, trained=encoder == TRAINED).items():
            probed = crossed_probe(features, values_IA, labels_I, seed=seed)
            right[encoder, space], chance_IA = probed.correct_IA, probed.chance_IA
        if images.readout is not None:
            right[encoder, READ_OUT] = images.readout.choices() == values_IA
    columns = []
    for (encoder, space), right_IA in right.items():
        accuracy, error, mean, mean_error = _by_attribute(right_IA.astype(float), labels_I)
        columns.append(
            ProbeColumn(encoder=encoder, space=space, accuracy=accuracy, error=error, mean=mean, mean_error=mean_error)
        )
    changes = []
    for encoder, space in right:
        if encoder == TRAINED and (PRETRAINED, space) in right:
            change_IA = right[TRAINED, space].astype(float) - right[PRETRAINED, space]
            difference, error, mean, mean_error = _by_attribute(change_IA, labels_I)
            changes.append(
                ProbeChange(space=space, difference=difference, error=error, mean=mean, mean_error=mean_error)
            )
    return Probes(
        attributes=attributes,
        chance=tuple(chance_IA.mean(0).tolist()),
        columns=tuple(columns),
        changes=tuple(changes),
    )


def _by_attribute(
    values_IA: np.ndarray, labels_I: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...], float, float]:
    """Returns the mean and standard error of each attribute, then those of the mean over the attributes."""
    errors = tuple(clustered_error(column, labels_I) for column in values_IA.T)
    overall_I = values_IA.mean(1)
    return tuple(values_IA.mean(0).tolist()), errors, float(overall_I.mean()), clustered_error(overall_I, labels_I)
