"""Text of the facts about an encoder's training, for the tables of every command."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from saga_dist.retrieval.results import MethodResult, TrainingFacts

TRAINING = ("metric loss", "images seen", "steps", "px", "pre-training")
"""Headings of the facts."""
NOT_KNOWN = "–"
"""Text of a fact that is not known or does not apply."""


def training_cells(facts: Sequence[TrainingFacts]) -> list[str]:
    """Returns the columns of ``TRAINING`` for facts of one or several runs; their different values are all named."""
    return [
        _distinct(facts, lambda one: one.metric_loss),
        _range([one.images_seen for one in facts]),
        _range([one.optimizer_steps for one in facts]),
        _distinct(facts, pixels),
        _distinct(facts, lambda one: one.pretraining),
    ]


def training_lines(methods: Sequence[MethodResult]) -> list[str]:
    """Returns a line for each of the methods whose training is known, e.g. ``SAGA: metric loss infonce, ...``.

    A remark on the training follows in a line of its own.
    """
    lines = []
    for method in methods:
        if method.training is not None:
            cells = zip(TRAINING, training_cells([method.training]), strict=True)
            lines.append(f"{method.name}: {', '.join(f'{heading} {text}' for heading, text in cells)}")
            if method.training.remark:
                lines.append(f"{method.name}: {method.training.remark}")
    return lines


def pixels(facts: TrainingFacts) -> str | None:
    """Returns the input size, e.g. ``224``, or ``256×128`` for height and width; None when it is not known."""
    height, width = facts.image_height, facts.image_width
    if height is None or width is None:
        return None
    return f"{height}" if height == width else f"{height}×{width}"


def _distinct(facts: Sequence[TrainingFacts], value: Callable[[TrainingFacts], str | None]) -> str:
    return ", ".join(dict.fromkeys(value(one) or NOT_KNOWN for one in facts)) or NOT_KNOWN


def _range(counts: Sequence[int | None]) -> str:
    """Returns a count or the range of several, e.g. ``17,600`` or ``17,600–35,200``."""
    known = [count for count in counts if count is not None]
    if not known or len(known) < len(counts):
        return NOT_KNOWN
    low, high = min(known), max(known)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
