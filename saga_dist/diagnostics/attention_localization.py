"""Shares of teacher and pooler attention on parts, bird and distractors of unseen built-in birds.

The built-in birds are drawn, so the pixels of every part are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from saga_dist.diagnostics.attention import entropy_nats, share_on, tokens_in
from saga_dist.diagnostics.encoded_images import EncodedImages
from saga_dist.diagnostics.schema import NOBODY, PRETRAINED, TRAINED, AttentionShares
from saga_dist.standin.masks import SceneMasks

NAMED, WHOLE, POOLER, UNIFORM = "teacher, at a part's word", "teacher, whole description", "pooler", "uniform"
"""Sources of attention (``AttentionShares.who``): the frozen MLLM at the word of one part, the frozen MLLM averaged
over the whole description, the attention pooler, and equal weights for reference."""


def attention_share_figures(observed: Mapping[str, EncodedImages], masks: SceneMasks) -> tuple[AttentionShares, ...]:
    """Returns the shares of attention on parts, bird and distractors: one row per source and encoder, then uniform.

    Args:
        observed: ``TRAINED`` and ``PRETRAINED``, each mapped to the images seen by that encoder. The first J images are
            those of the masks, in the same order, and all images have one size.
        masks: pixel masks of J images.
    """
    grid = observed[TRAINED].grid
    assert grid is not None, "images of one size"
    num_images, num_parts, *_ = masks.parts_IAHW.shape
    parts_IAN = np.stack([tokens_in(masks.parts_IAHW[:, part], *grid) for part in range(num_parts)], axis=1)
    bird_IN, distractors_IN = tokens_in(masks.bird_IHW, *grid), tokens_in(masks.distractors_IHW, *grid)

    def shared_row(who: str, encoder: str, weights_IN: np.ndarray) -> AttentionShares:
        """Returns the row of a source that has the same attention for all parts."""
        weights_IAN = np.broadcast_to(weights_IN[:, None], (num_images, num_parts, weights_IN.shape[-1]))
        return per_part_row(who, encoder, weights_IAN)

    def per_part_row(who: str, encoder: str, weights_IAN: np.ndarray) -> AttentionShares:
        """Returns the row of a source that has its own attention for each part."""
        on_part_IA = (weights_IAN * parts_IAN).sum(-1)
        mean_IN = weights_IAN.mean(1)
        return AttentionShares(
            who=who,
            encoder=encoder,
            part=_share(on_part_IA.mean()),
            bird=_share(share_on(mean_IN, bird_IN).mean()),
            distractors=_share(share_on(mean_IN, distractors_IN).mean()),
            entropy=float(entropy_nats(weights_IAN).mean()),
        )

    rows = []
    for encoder in (TRAINED, PRETRAINED):
        readout = observed[encoder].readout
        if readout is not None:
            assert readout.word_attention_JAN is not None
            assert readout.description_attention_JN is not None
            rows += [
                per_part_row(NAMED, encoder, readout.word_attention_JAN),
                shared_row(WHOLE, encoder, readout.description_attention_JN),
            ]
    pooler_IN = observed[TRAINED].pooler_IN
    if pooler_IN is not None:
        rows.append(shared_row(POOLER, TRAINED, pooler_IN[:num_images]))
    num_tokens = math.prod(grid)
    rows.append(shared_row(UNIFORM, NOBODY, np.full((num_images, num_tokens), 1 / num_tokens)))
    return tuple(rows)


def _share(value: float) -> float:
    """Returns the value cut to at most 1, which a sum of rounded weights can exceed slightly."""
    return min(1.0, float(value))
