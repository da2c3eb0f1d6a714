"""The verifiable reward: 1 when a completion's verdict agrees with the labels, else 0."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from saga_dist.objectives.answer import find_answer
from saga_dist.objectives.json_strict import load_object

VerdictForm = Literal["strict", "repaired", "none"]
"""Form in which a completion gives its verdict: as the prompt asks, in another form that can be read, or not at all."""


def parse_verdict(text: str, verdict_key: str) -> bool | None:
    """Returns the verdict of a completion: True for "yes" (same class), False for "no", None without a unique verdict.

    The verdict is read as a careful reader reads it: ``objectives.answer`` and ``objectives.json_scan`` list the
    tolerated forms. The last complete answer counts, so a completion that gives two answers is scored for the last one
    and cannot gain by giving both. Within one answer, all occurrences of the key must be valid and equal, otherwise the
    result is None.

    Args:
        text: one completion, untrusted, with any characters and of any length. Time is linear in its length.
        verdict_key: JSON key of the verdict, e.g. ``same_species``.

    Raises:
        TypeError: ``text`` or ``verdict_key`` is not a string.
        ValueError: ``verdict_key`` is empty.
    """
    _check_text(text)
    if not isinstance(verdict_key, str):
        raise TypeError(f"verdict_key is {type(verdict_key).__name__}; expected str")
    if not verdict_key:
        raise ValueError("verdict_key is empty; expected the name of the JSON key that holds the verdict")
    answer = find_answer(text, verdict_key)
    return None if answer is None else answer.verdict


def verdict_form(text: str, verdict_key: str) -> VerdictForm:
    """Returns ``strict``, ``repaired`` or ``none``, the form in which a completion gives its verdict.

    ``strict`` is a completion that is exactly one JSON object (``json_is_valid``), with the verdict key and one of the
    words yes and no as the prompt writes them; ``repaired`` is any other text in which ``parse_verdict`` finds a
    verdict; ``none`` is a text without one.

    Args:
        text: one completion, untrusted.
        verdict_key: JSON key of the verdict.

    Raises:
        TypeError: ``text`` or ``verdict_key`` is not a string.
        ValueError: ``verdict_key`` is empty.
    """
    if parse_verdict(text, verdict_key) is None:
        return "none"
    value = load_object(text)
    return "strict" if value is not None and value.get(verdict_key) in ("yes", "no") else "repaired"


def verdict_reward(verdict: bool | None, same: bool) -> float:
    """Returns 1.0 when the verdict is right, and 0.0 when it is wrong or None.

    Args:
        verdict: result of ``parse_verdict``.
        same: True when the two images have the same class.

    Raises:
        TypeError: ``verdict`` is neither bool nor None.

    Source: SAGA Eq. 3.
    """
    if verdict is not None and not isinstance(verdict, bool):
        raise TypeError(f"verdict is {type(verdict).__name__}; expected bool or None")
    return float(verdict is not None and verdict == bool(same))


def json_is_valid(text: str, required_keys: Iterable[str] = ()) -> bool:
    """Returns True when the whole completion is exactly one JSON object, optionally in one Markdown fence.

    It is stricter than ``parse_verdict`` on purpose, because it is a metric of the format and not the reward. Repeated
    keys, NaN, text before or after the object, and nesting too deep for the parser are invalid.

    Args:
        text: one completion, untrusted.
        required_keys: keys that the object must have at its top level.

    Raises:
        TypeError: ``text`` is not a string.
    """
    _check_text(text)
    value = load_object(text)
    return value is not None and all(key in value for key in required_keys)


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"text is {type(text).__name__}; expected str")
