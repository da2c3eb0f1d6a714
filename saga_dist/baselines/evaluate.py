"""A frozen encoder on a configuration's data: the same images, queries, figures and intervals as a run's own."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from saga_dist.baselines.frozen_encoder import EncoderCard, FrozenEncoder, check_embeddings, open_encoder
from saga_dist.config import RunConfig, Section
from saga_dist.data.image_sets import ImageSet
from saga_dist.errors import ConfigError
from saga_dist.protocols import Embeddings
from saga_dist.retrieval.results import SplitResult
from saga_dist.runtime.build import build_splits, resolve_device
from saga_dist.training.evaluation import retrieval_result

BATCH = 64


class Comparison(Section):
    """One row of a comparison: an encoder, its card and its figures."""

    encoder: EncoderCard
    data: str
    split: str
    result: SplitResult
    ms_per_image: float
    """Preprocessing and forward pass in batches of 64, decoding left out."""
    device: str


def compare(
    text: str, config: RunConfig, split: str, *, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Comparison:
    """Returns the figures of a frozen encoder on a split of a configuration's data.

    Args:
        text: the encoder, see ``frozen``.
        config: data, seed of k-means and bootstrap, device.
        split: ``test`` or ``val``.
        on_progress: called with images done and images in all.

    Raises:
        UserError: encoder or data cannot be used.
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
    searched = None if gallery is None else _embed(encoder, gallery, clock)
    result = retrieval_result(
        queries, searched, seed=config.run.seed, resamples=config.evaluation.bootstrap_resamples, precision=True
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
    """Seconds per image; the first batch, which also pays for memory and kernels, counts only where it is alone."""

    def __init__(self, on_done: Callable[[int], None]) -> None:
        self._on_done = on_done
        self._batches: list[tuple[int, float]] = []

    def note(self, images: int, seconds: float) -> None:
        self._batches.append((images, seconds))
        self._on_done(sum(count for count, _ in self._batches))

    @property
    def ms_per_image(self) -> float:
        """Milliseconds."""
        counted = self._batches[1:] or self._batches
        return 1000 * sum(seconds for _, seconds in counted) / sum(count for count, _ in counted)


def _embed(encoder: FrozenEncoder, images: ImageSet, clock: _Clock) -> Embeddings:
    chunks = []
    for start in range(0, len(images), BATCH):
        batch = [images.original(index) for index in range(start, min(start + BATCH, len(images)))]
        started = time.perf_counter()
        values_IE = encoder.encode(batch)
        clock.note(len(batch), time.perf_counter() - started)
        chunks.append(check_embeddings(values_IE, len(batch), encoder.card.dimension, f"--encoder {encoder.card.spec}"))
    return Embeddings(np.concatenate(chunks), images.labels_I, images.attributes_IA)
