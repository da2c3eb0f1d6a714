"""Where teacher and pooler look on unseen drawn birds, whose parts are known to the pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from saga_dist.diagnostics.attention import entropy_nats, share_on, tokens_in
from saga_dist.diagnostics.encoded_images import EncodedImages
from saga_dist.diagnostics.schema import NOBODY, PRETRAINED, TRAINED, AttentionShares
from saga_dist.standin.masks import SceneMasks

NAMED, WHOLE, POOLER, UNIFORM = "teacher, at a part's word", "teacher, whole description", "pooler", "uniform"


def attention_share_figures(observed: Mapping[str, EncodedImages], masks: SceneMasks) -> tuple[AttentionShares, ...]:
    """Returns the shares of attention on parts, bird and distractors, a row for each who looks, and for nobody.

    Args:
        observed: ``TRAINED`` and ``PRETRAINED`` to images that begin with those of the masks, in their order.
        masks: of J images.
    """
    grid = observed[TRAINED].grid
    assert grid is not None, "images of one size"
    num_images, num_parts, *_ = masks.parts_IAHW.shape
    parts_IAN = np.stack([tokens_in(masks.parts_IAHW[:, part], *grid) for part in range(num_parts)], axis=1)
    bird_IN, distractors_IN = tokens_in(masks.bird_IHW, *grid), tokens_in(masks.distractors_IHW, *grid)

    def row(who: str, encoder: str, weights_IN: np.ndarray) -> AttentionShares:
        """Somebody who looks at all parts at once."""
        return named(who, encoder, np.broadcast_to(weights_IN[:, None], (num_images, num_parts, weights_IN.shape[-1])))

    def named(who: str, encoder: str, weights_IAN: np.ndarray) -> AttentionShares:
        """Somebody who looks for one part after the other."""
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
        seen = observed[encoder].readings
        if seen is not None:
            assert seen.named_JAN is not None
            assert seen.whole_JN is not None
            rows += [named(NAMED, encoder, seen.named_JAN), row(WHOLE, encoder, seen.whole_JN)]
    pooler_IN = observed[TRAINED].pooler_IN
    if pooler_IN is not None:
        rows.append(row(POOLER, TRAINED, pooler_IN[:num_images]))
    num_tokens = math.prod(grid)
    rows.append(row(UNIFORM, NOBODY, np.full((num_images, num_tokens), 1 / num_tokens)))
    return tuple(rows)


def _share(value: float) -> float:
    """A sum of float weights may end a hair above 1."""
    return min(1.0, float(value))
