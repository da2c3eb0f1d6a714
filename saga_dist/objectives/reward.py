"""The verifiable reward: 1 when a completion's verdict agrees with the labels, else 0."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from saga_dist.objectives.json_scan import JsonMember, decode_string, scan_members

_VERDICTS = {"yes": True, "no": False}
_LONGEST_VERDICT = 64
"""Largest number of characters of a quoted verdict; a longer value is no verdict."""
_FENCED = re.compile(r"```[A-Za-z]*[ \t]*\r?\n(.*)```", re.DOTALL)


def parse_verdict(text: str, verdict_key: str) -> bool | None:
    """Returns the verdict of a completion: True for "yes" (same class), False for "no", None without a unique verdict.

    The verdict is the string value of ``verdict_key`` directly inside an outermost JSON object. Code fences, other text
    and a truncated end are tolerated; case and surrounding white space are ignored. Occurrences inside descriptions
    (nested objects, strings) are ignored. When the key occurs more than once, all occurrences must be valid and equal,
    otherwise the result is None; so a completion cannot gain by giving both answers.

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
    verdicts = {_read_verdict(text, member) for member in scan_members(text) if member.key == verdict_key}
    return verdicts.pop() if len(verdicts) == 1 else None


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
    body = text.strip()
    fenced = _FENCED.fullmatch(body)
    try:
        value = json.loads(
            fenced.group(1) if fenced else body,
            object_pairs_hook=_unique_pairs,
            parse_constant=_refuse_constant,
            parse_int=float,
        )
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and all(key in value for key in required_keys)


def _read_verdict(text: str, member: JsonMember) -> bool | None:
    """Returns the verdict in the value of a member; None when the value is no verdict."""
    if not (member.closed and member.clean) or member.end - member.start > _LONGEST_VERDICT:
        return None
    word = decode_string(text[member.start : member.end])
    return None if word is None else _VERDICTS.get(word.strip().casefold())


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("repeated key")
    return unique


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"text is {type(text).__name__}; expected str")
