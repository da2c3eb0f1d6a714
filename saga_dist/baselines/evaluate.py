"""Evaluates a frozen encoder on a configuration's data, with the images, queries, metrics and intervals of a run."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from saga_dist.baselines.frozen_encoder import EncoderCard, FrozenEncoder, check_embeddings, open_encoder
from saga_dist.config import RunConfig, Section
from saga_dist.data.image_sets import ImageSet
from saga_dist.errors import ConfigError
from saga_dist.protocols import Embeddings
from saga_dist.retrieval.results import SplitResult, TrainingFacts
from saga_dist.runtime.build import build_splits
from saga_dist.runtime.devices import resolve_device
from saga_dist.training.evaluation import retrieval_result

BATCH = 64
"""Images per call of the encoder."""


class Comparison(Section):
    """Result of a frozen encoder on a split."""

    encoder: EncoderCard
    """Facts about the encoder."""
    data: str
    """Layout and root of the data set."""
    split: str
    """``test`` or ``val``."""
    result: SplitResult
    """Retrieval metrics of the split."""
    ms_per_image: float
    """Milliseconds per image for preprocessing and forward pass in batches of 64, without decoding the image file."""
    device: str
    """Device of the encoder."""

    @property
    def training(self) -> TrainingFacts:
        """Facts about the encoder's training."""
        return self.encoder.training_facts()


def compare(
    text: str, config: RunConfig, split: str, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Comparison:
    """Returns the result of a frozen encoder on a split of a configuration's data.

    Args:
        text: specification of the encoder, see ``frozen_encoder``.
        config: configuration with data, device, and the seed of k-means and bootstrap.
        split: ``test`` or ``val``.
        on_progress: called after every batch with the number of images done and of all images.

    Raises:
        UserError: the encoder or the data cannot be used.
    """
    if split not in ("test", "val"):
        raise ConfigError(f"--split {split!r}", expected="test or val")
    device = resolve_device(config.model.device)
    splits = build_splits(config.data, seed=config.run.seed)
    images = splits.named(split)
    gallery = splits.gallery if split == "test" else None
    encoder = open_encoder(text, device)
    total = len(images) + (len(gallery) if gallery is not None else 0)
    clock = _Clock(lambda done: on_progress(done, total))
    queries = _embed(encoder, images, clock)
    gallery_embeddings = None if gallery is None else _embed(encoder, gallery, clock)
    result = retrieval_result(
        queries,
        gallery_embeddings,
        seed=config.run.seed,
        resamples=config.evaluation.bootstrap_resamples,
        precision=True,
    )
    return Comparison(
        encoder=encoder.card,
        data=f"{config.data.layout} {config.data.root}".strip(),
        split=split,
        result=result,
        ms_per_image=clock.ms_per_image,
        device=str(device),
    )


class _Clock:
    """Measures the time per image.

    The first batch includes memory allocation and the choice of kernels, so it counts only when there is no other.

    Args:
        on_done: called after every batch with the number of images done.
    """

    def __init__(self, on_done: Callable[[int], None]) -> None:
        self._on_done = on_done
        self._batches: list[tuple[int, float]] = []

    def add(self, images: int, seconds: float) -> None:
        """Adds a batch."""
        self._batches.append((images, seconds))
        self._on_done(sum(count for count, _ in self._batches))

    @property
    def ms_per_image(self) -> float:
        """Milliseconds per image."""
        counted = self._batches[1:] or self._batches
        return 1000 * sum(seconds for _, seconds in counted) / sum(count for count, _ in counted)


def _embed(encoder: FrozenEncoder, images: ImageSet, clock: _Clock) -> Embeddings:
    """Returns the embeddings of a set of images, checked with ``check_embeddings``."""
    chunks = []
    for start in range(0, len(images), BATCH):
        batch = [images.original(index) for index in range(start, min(start + BATCH, len(images)))]
        started = time.perf_counter()
        values_IE = encoder.encode(batch)
        clock.add(len(batch), time.perf_counter() - started)
        chunks.append(check_embeddings(values_IE, len(batch), encoder.card.dimension, f"--encoder {encoder.card.spec}"))
    return Embeddings(np.concatenate(chunks), images.labels_I, images.attributes_IA)
