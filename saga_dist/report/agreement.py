"""The attributes of a group's completions side by side, and what most of them say of each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from saga_dist.report.attribute_stats import DescribedPair
from saga_dist.report.text import shown_name


def agreement_rows(described: Sequence[DescribedPair], attributes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the JSON values of the viewer's table: one row for each attribute that a completion gives.

    A row has ``name`` and, under ``a`` and ``b``, one image each: ``values`` of all completions, None where a
    completion leaves the attribute out; ``common``, the most frequent value, the first of several; and ``agree``, the
    number of completions with that value.

    Args:
        described: attribute values of each completion of the group.
        attributes: JSON keys of the attributes, in order.
    """
    sides = {"a": [one.a for one in described], "b": [one.b for one in described]}
    return [
        {
            "name": shown_name(attribute),
            **{side: _side([values.get(attribute) for values in given]) for side, given in sides.items()},
        }
        for attribute in attributes
        if any(attribute in values for given in sides.values() for values in given)
    ]


def _side(values: Sequence[str | None]) -> dict[str, Any]:
    given = Counter(value for value in values if value is not None)
    common, agree = given.most_common(1)[0] if given else (None, 0)
    return {
        "values": [None if value is None else shown_name(value) for value in values],
        "common": None if common is None else shown_name(common),
        "agree": agree,
    }
