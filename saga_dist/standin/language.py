"""The stand-in's language: the colour words of the six parts and the answer to the comparison prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence

from saga_dist.data.forced_verdict import forced_opening
from saga_dist.data.prompt_templates import VERDICTS
from saga_dist.data.prompts import PromptSpec
from saga_dist.data.vocabularies import STANDIN_BIRDS
from saga_dist.errors import DataError

PARTS: tuple[str, ...] = STANDIN_BIRDS.attributes
"""The A = 6 parts, which are the attributes of the prompt."""
COLOR_WORDS: dict[str, tuple[str, ...]] = {
    # Each word belongs to one part only, so that a tiny language model can tell the part from the word.
    "bill": ("yellow", "scarlet", "black", "silver"),
    "crown": ("red", "gold", "blue", "white"),
    "breast": ("cream", "orange", "maroon", "slate"),
    "wing": ("charcoal", "ivory", "green", "purple"),
    "tail": ("brown", "pale", "rust", "navy"),
    "legs": ("dark", "amber", "pink", "teal"),
}
NUM_VALUES = 4
"""Number of colours of each part."""

STANDIN_PROMPT = PromptSpec(STANDIN_BIRDS)
"""The only prompt that the stand-in was trained on: structured, images first."""


def answer_text(values_a: Sequence[int], values_b: Sequence[int], *, spec: PromptSpec = STANDIN_PROMPT) -> str:
    """Returns the JSON answer that describes two birds, with the differences and the verdict that follow from them.

    Args:
        values_a: integers [A] in 0..3, value of each part of bird 1 in the order of ``PARTS``.
        values_b: integers [A] in 0..3, the same for bird 2.
        spec: prompt that defines the keys and their order.

    Raises:
        DataError: the prompt's template asks for a key that the built-in templates do not have.
    """
    differing = [part for part, a, b in zip(PARTS, values_a, values_b, strict=True) if a != b]
    notes = [f"{part} {'differs' if part in differing else 'same'}" for part in PARTS]
    values: dict[str, object] = {
        spec.key_a: {part: COLOR_WORDS[part][value] for part, value in zip(PARTS, values_a, strict=True)},
        spec.key_b: {part: COLOR_WORDS[part][value] for part, value in zip(PARTS, values_b, strict=True)},
        "differences": "; ".join(notes),
        "confidence": ("high", "low", "medium")[len(differing)] if len(differing) < 3 else "high",
        "reasoning": _reasoning(differing),
        spec.verdict_key: "no" if differing else "yes",
    }
    if unknown := [key for key in spec.keys if key not in values]:
        raise DataError(
            f"the true answer to {unknown[0]!r} is not known",
            where=f"prompt.variant = {spec.variant!r}",
            expected="structured or generic",
        )
    return json.dumps({key: values[key] for key in spec.keys})


def verdict_first_text(same: bool, *, spec: PromptSpec = STANDIN_PROMPT) -> str:
    """Returns the JSON answer that consists of the verdict alone, as ``objective.signal = "verdict"`` forces it.

    Args:
        same: True when both birds are of one species.
        spec: prompt that defines the key of the verdict.
    """
    return f'{forced_opening(spec.verdict_key)}{VERDICTS[not same]}"}}'


def answer_pieces(spec: PromptSpec = STANDIN_PROMPT) -> tuple[str, ...]:
    """Returns the phrases of which answers consist; the tokenizer makes each of them one token.

    The quote and brace that close a description are a phrase of their own, so that no token crosses its end.
    """
    first, *others = PARTS
    return (
        *(f'{{"{spec.key_a}": {{"{first}": "', f', "{spec.key_b}": {{"{first}": "', '"}'),
        *(f'", "{part}": "' for part in others),
        *(word for part in PARTS for word in COLOR_WORDS[part]),
        *(f', "differences": "{first} {relation}' for relation in ("same", "differs")),
        *(f"; {part} {relation}" for part in others for relation in ("same", "differs")),
        *('", "confidence": "', "high", "medium", "low", '", "reasoning": "'),
        *(_reasoning(differing) for differing in ([], *([part] for part in PARTS), [first, first])),
        *(f'", "{spec.verdict_key}": "', "yes", "no"),
    )


def _reasoning(differing: Sequence[str]) -> str:
    if not differing:
        return "Every part matches."
    return f"Only the {differing[0]} differs." if len(differing) == 1 else "Several parts differ."
