"""Images of unseen classes as an encoder shows them: their tokens, the embedding, and what the MLLM reads in them.

One pass through the tower serves every instrument that needs no training pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from saga_dist.diagnostics.attribute_readout import AttributeReadout, ReadoutResult
from saga_dist.types import EncoderTokens, ImagePair
from saga_dist.workers.learner import Learner

_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """I images, one row each."""

    embeddings_IE: np.ndarray
    """float32 [I, E]: z."""
    means_ID: np.ndarray
    """float32 [I, D]: mean of the main tokens."""
    flat_IF: np.ndarray | None
    """float32 [I, N * D]: all main tokens side by side; None where images differ in N, or where nobody asked."""
    pooler_IN: np.ndarray | None
    """float32 [I, N]: the attention pooler's weights; None from other poolers, or where images differ in N."""
    grid: tuple[int, int] | None
    """Rows and columns of tokens; None where images differ."""
    readings: ReadoutResult | None
    """What the MLLM reads in every image, and where it looks in the first ones; None without a reader."""


def encode_images(
    learner: Learner,
    split: str,
    image_ids: Sequence[int],
    *,
    reader: AttributeReadout | None = None,
    num_looks: int = 0,
    flat: bool = False,
) -> EncodedImages:
    """Returns what the learner's encoder, as it is, makes of images of a split.

    Args:
        learner: its tower and pooler are used.
        split: e.g. ``test``.
        image_ids: [I] indices into the split.
        reader: reads each image with the frozen MLLM.
        num_looks: of the first so many images, read where the MLLM looks, too.
        flat: keep all tokens.
    """
    encoder = learner.encoder
    embeddings, means, kept, weights = [], [], [], []
    readings, sizes = [], set()
    for start in range(0, len(image_ids), _AT_ONCE):
        chunk = image_ids[start : start + _AT_ONCE]
        pairs = [ImagePair(f"evidence.p{image}", image, image, 0, 0) for image in chunk]
        tokens = learner.encode_pairs(split, pairs)
        main = [_first_image(one) for one in tokens]
        with torch.no_grad():
            pooled = encoder.pooler(main)
        embeddings.append(pooled.embeddings_IE.float().cpu().numpy())
        means.append(np.stack([image_ND.mean(0).cpu().numpy() for image_ND in main]))
        sizes |= {one.grids[0] for one in tokens}
        if len(sizes) == 1:
            if flat:
                kept.append(torch.stack(main).flatten(1).cpu().numpy())
            if pooled.log_weights_IN is not None:
                weights.append(pooled.log_weights_IN.exp().cpu().numpy())
        if reader is not None:
            readings.append(reader.read(tokens, num_looks=max(0, num_looks - start)))
    grid = None
    if len(sizes) == 1:
        ((_, rows, columns),) = sizes
        grid = rows // encoder.tower.layout.merge_size, columns // encoder.tower.layout.merge_size
    return EncodedImages(
        embeddings_IE=np.concatenate(embeddings),
        means_ID=np.concatenate(means),
        flat_IF=np.concatenate(kept) if kept and grid else None,
        pooler_IN=np.concatenate(weights) if weights and grid else None,
        grid=grid,
        readings=ReadoutResult.joined(readings) if readings else None,
    )


def _first_image(tokens: EncoderTokens) -> torch.Tensor:
    """Main tokens [N, D] float32 of a payload that holds one image twice."""
    return tokens.values_NW[: tokens.lengths[0], : tokens.width].float()
