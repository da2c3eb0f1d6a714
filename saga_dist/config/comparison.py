"""Comparison of two runs' configurations by their deciding keys: flat dicts of ``section.key`` to JSON values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from saga_dist.config.metric_params import METRIC_PARAMS

METRIC_PARAMS_PREFIX = "objective.metric_params."
"""Prefix of the keys of the metric loss's parameters, of which a configuration has only those that it sets."""
NAMED_KEYS = 4
"""Largest number of keys that an error message names."""
EARLIER_REDUCTION = {f"{METRIC_PARAMS_PREFIX}reduction": "mean"}
"""Default of the Potential Field loss's reduction in version 0.1.0, where a configuration without the key meant it."""


def deciding_digest(values: Mapping[str, Any]) -> str:
    """Returns the sha256 of deciding keys and their values."""
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()


def differing_keys(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Returns ``section.key: mine != theirs`` for every key whose value differs, sorted.

    Args:
        mine: deciding keys of one run.
        theirs: deciding keys of the other.
    """
    return [
        f"{key}: {_shown(mine, key)} != {_shown(theirs, key)}"
        for key in sorted(mine.keys() | theirs.keys())
        if (key in mine, mine.get(key)) != (key in theirs, theirs.get(key))
    ]


def name_keys(differences: Sequence[str]) -> str:
    """Returns the first differences, and the number of the others, as one text for an error message."""
    more = len(differences) - NAMED_KEYS
    return "; ".join(differences[:NAMED_KEYS]) + (f" (and {more} more)" if more > 0 else "")


def _shown(values: Mapping[str, Any], key: str) -> str:
    """Returns the value of a key as text; a parameter of the metric loss that is not set is shown with its default."""
    if key in values:
        return repr(values[key])
    parameters = METRIC_PARAMS.get(str(values.get("objective.metric_loss")), {})
    parameter = parameters.get(key.removeprefix(METRIC_PARAMS_PREFIX))
    if parameter is None or parameter.default is None:
        return "not set"
    return f"not set (default {parameter.default!r})"
