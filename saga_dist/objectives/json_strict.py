"""Strict reader of an answer that is one JSON object and nothing else."""

from __future__ import annotations

import json
import re

_FENCED = re.compile(r"```[A-Za-z]*[ \t]*\r?\n(.*)```", re.DOTALL)


def load_object(text: str) -> dict[str, object] | None:
    """Returns the object that is the whole text, optionally in one Markdown fence; None for any other text.

    Repeated keys, NaN and nesting too deep for the parser give None. Integers are floats, so that their number of
    digits is not limited.

    Args:
        text: one completion, untrusted.
    """
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
        return None
    return value if isinstance(value, dict) else None


def _unique_pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("repeated key")
    return unique


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
