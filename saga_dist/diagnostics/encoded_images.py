"""Encoder outputs for images of unseen classes: tokens, embeddings, and the MLLM's attribute read-out of them.

One pass through the tower provides the inputs of every diagnostic that needs no training pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from saga_dist.diagnostics.attribute_readout import AttributeReadout, ReadoutResult
from saga_dist.types import EncoderTokens, ImagePair
from saga_dist.workers.learner import Learner

_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """Outputs of one encoder for I images, one row per image."""

    embeddings_IE: np.ndarray
    """float32 [I, E]: the embeddings z."""
    means_ID: np.ndarray
    """float32 [I, D]: mean of the main tokens of each image."""
    flat_IF: np.ndarray | None
    """float32 [I, N * D]: all main tokens of each image, concatenated; None when the images differ in their patch
    grids, or when they were not requested."""
    pooler_IN: np.ndarray | None
    """float32 [I, N]: weights of the attention pooler, adding up to 1 over N; None for other poolers, or when the
    images differ in their patch grids."""
    grid: tuple[int, int] | None
    """Rows and columns of tokens, after merging of patches; None when the images differ."""
    readout: ReadoutResult | None
    """The MLLM's read-out of every image, with attention for the first ones; None when it was not requested."""


def encode_images(
    learner: Learner,
    split: str,
    image_ids: Sequence[int],
    *,
    readout: AttributeReadout | None = None,
    num_attention: int = 0,
    flat: bool = False,
) -> EncodedImages:
    """Returns the outputs of the learner's encoder, at its present weights, for images of a split.

    Args:
        learner: provides tower, pooler and images.
        split: name of the split, e.g. ``test``.
        image_ids: [I] indices into the split.
        readout: applied to every image; None for no read-out.
        num_attention: number of images, from the first, for which the read-out includes the MLLM's attention.
        flat: True to return all main tokens too.
    """
    encoder = learner.encoder
    embeddings, means, kept, weights = [], [], [], []
    readouts, sizes = [], set()
    for start in range(0, len(image_ids), _BATCH_SIZE):
        chunk = image_ids[start : start + _BATCH_SIZE]
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
        if readout is not None:
            readouts.append(readout.read(tokens, num_attention=max(0, num_attention - start)))
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
        readout=ReadoutResult.joined(readouts) if readouts else None,
    )


def _first_image(tokens: EncoderTokens) -> torch.Tensor:
    """Returns the main tokens, float32 [N, D], of the first image of a pair."""
    return tokens.values_NW[: tokens.lengths[0], : tokens.width].float()
