"""Forced verdicts of a stand-in: ``python -m saga_dist.standin.forced DIR`` measures p(right) on unseen species.

``objective.signal = "verdict"`` trains on the likelihood of a verdict that begins the answer. Whether a stand-in knows
the verdict before it has described a bird depends on its pre-training (``pretrain --verdict-first``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from saga_dist.standin.examine import DOMAINS, draw_pairs, encode_all, held_out_birds
from saga_dist.standin.pair_model import PairModel
from saga_dist.standin.world import BirdSplit

ENOUGH = 0.7
"""Mean p(right verdict), on pairs of either kind in the style of pre-training, above which a stand-in is of use."""


def examine_forced(pair_model: PairModel, *, num_pairs: int = 512) -> dict[str, float]:
    """Returns the figures of ``examine_forced_pairs`` on unseen species, under ``clean/`` and ``shifted/``.

    Args:
        pair_model: the stand-in with its prompt.
        num_pairs: pairs of images per domain.
    """
    return {
        f"{domain}/{name}": round(value, 3)
        for domain in DOMAINS
        for name, value in examine_forced_pairs(pair_model, held_out_birds(domain), num_pairs=num_pairs).items()
    }


@torch.no_grad()
def examine_forced_pairs(pair_model: PairModel, birds: BirdSplit, *, num_pairs: int) -> dict[str, float]:
    """Returns mean p(right verdict) and the share of pairs with p above 1/2, for same-class and different-class pairs.

    Args:
        pair_model: the stand-in with its prompt.
        birds: images of a split.
        num_pairs: number of pairs, of which every second one has two images of one class.
    """
    first, second = draw_pairs(birds.labels, num_pairs)
    tokens = encode_all(pair_model, birds.images)
    same_P = torch.from_numpy(birds.labels[first] == birds.labels[second])
    p_same_P = pair_model.forced_probability(tokens[first], tokens[second])
    figures = {}
    for kind, p_right in (("same", p_same_P[same_P]), ("different", 1 - p_same_P[~same_P])):
        figures[f"forced_probability_{kind}"] = p_right.mean().item()
        figures[f"forced_right_share_{kind}"] = (p_right > 0.5).float().mean().item()
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 when p(right verdict) is above ``ENOUGH`` for both kinds of pairs, else 1."""
    from transformers import Qwen3VLForConditionalGeneration

    parser = argparse.ArgumentParser(prog="python -m saga_dist.standin.forced", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of a stand-in, as pretrain writes it")
    parser.add_argument("--pairs", type=int, default=512, help="pairs of images per domain")
    parsed = parser.parse_args(arguments)
    model = Qwen3VLForConditionalGeneration.from_pretrained(parsed.model, dtype=torch.float32).eval()
    figures = examine_forced(PairModel(model, image_size=80), num_pairs=parsed.pairs)
    for name, value in figures.items():
        sys.stdout.write(f"{name:<40}{value:.3f}\n")
    lowest = min(figures[f"clean/forced_probability_{kind}"] for kind in ("same", "different"))
    sys.stdout.write(f"lowest p(right verdict) in the style of pre-training: {lowest:.3f}, needed: above {ENOUGH}\n")
    return 0 if lowest > ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
