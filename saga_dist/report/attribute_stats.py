"""What the attributes have to do with it: where rollouts disagree, and which attributes decide the verdict.

A group is one pair of images judged G times, so whatever varies within it is the sampling's doing, and a gradient comes
from nowhere else. Two questions per attribute, both answered from the descriptions alone:

    disagreement   how often do two completions of a group describe it differently?  It falls where training settles it.
    decides        when completions of a group differ in whether the attribute tells the two images apart, does their
                   verdict go with it?  (correlation within groups: the pair itself is held fixed)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saga_dist.objectives.json_scan import decode_string, scan_members
from saga_dist.objectives.spans import Span

_LONGEST_VALUE = 400  # characters of an attribute's value worth comparing


@dataclass(frozen=True, slots=True)
class DescribedPair:
    """What one completion says, reduced to what can be counted."""

    a: Mapping[str, str]
    """Attribute to its value for image a, lower case."""
    b: Mapping[str, str]
    verdict: bool | None
    """True for "same class"."""
    right: bool

    def tells_apart(self, attribute: str) -> bool | None:
        """Whether the two descriptions differ in the attribute; None when one of them leaves it out."""
        if attribute not in self.a or attribute not in self.b:
            return None
        return self.a[attribute] != self.b[attribute]


@dataclass(frozen=True, slots=True)
class AttributeRow:
    """One attribute over many groups. Correlations are None where nothing varies."""

    attribute: str
    stated: float
    """Share of completions that give it for both images."""
    disagreement: float | None
    """Mean over groups and images of the chance that two completions of a group describe it differently."""
    early: float | None
    """The same over the first third of the steps."""
    late: float | None
    """The same over the last third."""
    differs: float | None
    """Share of completions in which it tells the images apart."""
    verdict_link: float | None
    """Correlation of "it tells them apart" with the verdict "different", over all completions."""
    truth_link: float | None
    """Correlation of "it tells them apart" with the pair being of two classes."""
    decides: float | None
    """As ``verdict_link``, within groups."""
    right_link: float | None
    """Correlation of "it tells them apart" with a right verdict, within groups."""


def attribute_values(text: str, key: str) -> dict[str, str]:
    """Returns attribute to value of the description under ``key``, lower case, white space collapsed.

    Of a repeated attribute the first counts; a value that was cut off, or is no string, is left out.

    Args:
        text: one completion, untrusted; time is linear in it.
        key: e.g. ``bird_1``.
    """
    return {
        name: " ".join(value.split()).casefold()
        for name, span in attribute_spans(text, key).items()
        if (value := decode_string(text[span.start : span.end])) is not None
    }


def attribute_spans(text: str, key: str) -> dict[str, Span]:
    """Returns attribute to the characters of its value (quotes included) in the description under ``key``."""
    for member in scan_members(text):
        if member.key == key and text[member.start : member.start + 1] == "{":
            spans: dict[str, Span] = {}
            for inner in scan_members(text[member.start : member.end]):
                if inner.closed and inner.end - inner.start <= _LONGEST_VALUE:
                    spans.setdefault(inner.key, Span(member.start + inner.start, member.start + inner.end))
            return spans
    return {}


def disagreement(values: Sequence[str]) -> float | None:
    """Returns the chance that two different completions, drawn at random, do not say the same; None for fewer than two.

    ``1 - sum_v n_v (n_v - 1) / (n (n - 1))``: 0 when all agree, 1 when no two do.
    """
    total = len(values)
    if total < 2:
        return None
    agreeing = sum(count * (count - 1) for count in Counter(values).values())
    return 1 - agreeing / (total * (total - 1))


def group_disagreement(group: Sequence[DescribedPair], attribute: str) -> float | None:
    """Returns the mean disagreement over the two images of a group; None where neither is described twice."""
    measured = [
        value
        for side in ("a", "b")
        if (value := disagreement([_side(one, side)[attribute] for one in group if attribute in _side(one, side)]))
        is not None
    ]
    return sum(measured) / len(measured) if measured else None


def correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float | None:
    """Returns Pearson's correlation, which for yes/no values is phi; None where one of them does not vary."""
    return _normalised_product(np.asarray(x, np.float64), np.asarray(y, np.float64), centre=True)


def within_correlation(groups: Iterable[tuple[Sequence[float], Sequence[float]]]) -> float | None:
    """Returns the correlation of x and y after each group's own means were taken off; None where nothing varies.

    Args:
        groups: (x, y) of each group, of equal length.
    """
    deviations = [
        (np.asarray(x, np.float64) - np.mean(x), np.asarray(y, np.float64) - np.mean(y)) for x, y in groups if len(x)
    ]
    if not deviations:
        return None
    x, y = (np.concatenate(parts) for parts in zip(*deviations, strict=True))
    return _normalised_product(x, y, centre=False)


def attribute_table(
    groups: Sequence[Sequence[DescribedPair]],
    steps: Sequence[int],
    same: Sequence[bool],
    attributes: Sequence[str],
) -> list[AttributeRow]:
    """Returns one row per attribute, in the given order.

    Args:
        groups: the completions of each group.
        steps: optimizer step of each group.
        same: whether the group's pair is of one class.
        attributes: names as they stand in the JSON.
    """
    return [_row(groups, steps, same, attribute) for attribute in attributes]


def disagreement_by_step(
    groups: Sequence[Sequence[DescribedPair]], steps: Sequence[int], attribute: str
) -> list[tuple[int, float]]:
    """Returns (step, mean disagreement of its groups), by step."""
    found: dict[int, list[float]] = {}
    for group, step in zip(groups, steps, strict=True):
        value = group_disagreement(group, attribute)
        if value is not None:
            found.setdefault(step, []).append(value)
    return [(step, sum(values) / len(values)) for step, values in sorted(found.items())]


def _row(
    groups: Sequence[Sequence[DescribedPair]], steps: Sequence[int], same: Sequence[bool], attribute: str
) -> AttributeRow:
    by_step = disagreement_by_step(groups, steps, attribute)
    per_group = [group_disagreement(group, attribute) for group in groups]
    measured = [value for value in per_group if value is not None]
    third = math.ceil(len(by_step) / 3)
    total = sum(len(group) for group in groups)
    # (tells apart, says different, is right) of every completion that states the attribute and gives a verdict.
    judged = [
        [
            (float(apart), float(not one.verdict), float(one.right))
            for one in group
            if one.verdict is not None and (apart := one.tells_apart(attribute)) is not None
        ]
        for group in groups
    ]
    stated = [
        (float(value), float(not truth))
        for group, truth in zip(groups, same, strict=True)
        for one in group
        if (value := one.tells_apart(attribute)) is not None
    ]
    flat = [item for group in judged for item in group]
    return AttributeRow(
        attribute=attribute,
        stated=len(stated) / total if total else 0.0,
        disagreement=_mean(measured),
        early=_mean([value for _, value in by_step[:third]]) if len(by_step) > 1 else None,
        late=_mean([value for _, value in by_step[-third:]]) if len(by_step) > 1 else None,
        differs=_mean([value for value, _ in stated]),
        verdict_link=correlation([item[0] for item in flat], [item[1] for item in flat]),
        truth_link=correlation([value for value, _ in stated], [truth for _, truth in stated]),
        decides=within_correlation(([x for x, _, _ in group], [y for _, y, _ in group]) for group in judged),
        right_link=within_correlation(([x for x, _, _ in group], [z for _, _, z in group]) for group in judged),
    )


def _side(one: DescribedPair, side: str) -> Mapping[str, str]:
    return one.a if side == "a" else one.b


def _normalised_product(x: np.ndarray, y: np.ndarray, *, centre: bool) -> float | None:
    if len(x) == 0:
        return None
    if centre:
        x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    # What is left of equal values after subtracting their mean is rounding, not variation.
    return float(np.clip(x @ y / scale, -1, 1)) if scale > 1e-12 * len(x) else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
