"""Statistics of the described attributes: disagreement within groups, and correlation with the verdict.

A group is G completions for one pair of images, so variation within it comes from sampling alone; it is also the only
source of the policy gradient. Two statistics of each attribute are computed from the descriptions:

    disagreement   probability that two completions of a group describe the attribute differently. It falls when
                   training makes the attribute clear.
    decides        correlation, within groups, of "the two descriptions differ in the attribute" with the verdict
                   "different". The pair is fixed within a group, so differences between pairs do not contribute.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from saga_dist.objectives.json_tokens import QUOTES, content
from saga_dist.objectives.spans import Span, described_members, description

_LONGEST_VALUE = 400  # longer values, in characters, are ignored


@dataclass(frozen=True, slots=True)
class DescribedPair:
    """Attribute values and verdict of one completion."""

    a: Mapping[str, str]
    """Attribute to its value for image a, lower case."""
    b: Mapping[str, str]
    """Attribute to its value for image b, lower case."""
    verdict: bool | None
    """True for "same class", False for "different", None without a verdict."""
    right: bool
    """True when the verdict is correct."""

    def differs_in(self, attribute: str) -> bool | None:
        """Returns True when the two descriptions differ in the attribute, None when one of them leaves it out."""
        if attribute not in self.a or attribute not in self.b:
            return None
        return self.a[attribute] != self.b[attribute]


@dataclass(frozen=True, slots=True)
class AttributeRow:
    """Statistics of one attribute over many groups.

    Shares are in [0, 1], None without data. Correlations are in [-1, 1], None when one of the two variables is
    constant. A completion "differs" when its two descriptions have different values of the attribute.
    """

    attribute: str
    """Name of the attribute."""
    stated: float
    """Share of completions that give the attribute for both images."""
    disagreement: float | None
    """Probability that two completions of a group describe the attribute differently: mean over images and groups."""
    early: float | None
    """Disagreement over the first third of the steps that have one; None with fewer than two steps."""
    late: float | None
    """Disagreement over the last third of the steps that have one; None with fewer than two steps."""
    differs: float | None
    """Share of completions that differ, among those that give the attribute for both images."""
    verdict_link: float | None
    """Correlation of "differs" with the verdict "different", over all completions with a verdict."""
    truth_link: float | None
    """Correlation of "differs" with the pair being of two classes, over all completions."""
    decides: float | None
    """Correlation of "differs" with the verdict "different", within groups."""
    right_link: float | None
    """Correlation of "differs" with a correct verdict, within groups."""


def attribute_values(
    text: str, key: str, *, verdict_key: str | None = None, keys: Collection[str] = ()
) -> dict[str, str]:
    """Returns the attributes and values of the description under ``key``, lower case, with white space collapsed.

    The first value of a repeated attribute is used. A value that is cut off, longer than 400 characters or not a string
    is left out.

    Args:
        text: one completion, untrusted; time is linear in its length.
        key: JSON key of the description, e.g. ``bird_1``.
        verdict_key: JSON key of the verdict, to use the answer whose verdict counts (``objectives.spans``).
        keys: all top-level keys of the answer.
    """
    return {
        name: " ".join(content(text[span.start : span.end]).split()).casefold()
        for name, span in attribute_spans(text, key, verdict_key=verdict_key, keys=keys).items()
        if text[span.start] in QUOTES
    }


def attribute_spans(
    text: str, key: str, *, verdict_key: str | None = None, keys: Collection[str] = ()
) -> dict[str, Span]:
    """Returns each attribute of the description under ``key`` with the character span of its value, quotes included.

    Args:
        text: one completion, untrusted.
        key: JSON key of the description, e.g. ``bird_1``.
        verdict_key: JSON key of the verdict, to use the answer whose verdict counts (``objectives.spans``).
        keys: all top-level keys of the answer.
    """
    found = description(described_members(text, (key, *keys), verdict_key=verdict_key), key)
    spans: dict[str, Span] = {}
    for member in found.members if found is not None else ():
        if member.closed and member.end - member.start <= _LONGEST_VALUE:
            spans.setdefault(member.key, Span(member.start, member.end))
    return spans


def disagreement(values: Sequence[str]) -> float | None:
    """Returns the probability, in [0, 1], that two completions drawn without replacement have different values.

    ``1 - sum_v n_v (n_v - 1) / (n (n - 1))``: 0 when all values are equal, 1 when no two are; None for fewer than two.

    Args:
        values: value of one attribute in each of n completions.
    """
    total = len(values)
    if total < 2:
        return None
    agreeing = sum(count * (count - 1) for count in Counter(values).values())
    return 1 - agreeing / (total * (total - 1))


def group_disagreement(group: Sequence[DescribedPair], attribute: str) -> float | None:
    """Returns the mean disagreement over the two images of a group.

    An image counts when at least two completions give the attribute for it; None when neither image counts.
    """
    measured = [
        value
        for side in ("a", "b")
        if (value := disagreement([_side(one, side)[attribute] for one in group if attribute in _side(one, side)]))
        is not None
    ]
    return sum(measured) / len(measured) if measured else None


def correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float | None:
    """Returns Pearson's correlation, the phi coefficient for binary values; None when x or y is constant."""
    return _normalised_product(np.asarray(x, np.float64), np.asarray(y, np.float64), centre=True)


def within_correlation(groups: Iterable[tuple[Sequence[float], Sequence[float]]]) -> float | None:
    """Returns the correlation of x and y after subtraction of each group's means.

    None when x or y does not vary within any group.

    Args:
        groups: (x, y) of each group, two sequences of one length.
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
        same: for each group, True when the two images have the same class.
        attributes: names of the attributes, as they appear in the JSON.
    """
    return [_row(groups, steps, same, attribute) for attribute in attributes]


def disagreement_by_step(
    groups: Sequence[Sequence[DescribedPair]], steps: Sequence[int], attribute: str
) -> list[tuple[int, float]]:
    """Returns (step, mean disagreement over the groups of the step), in order of the steps.

    Args:
        groups: the completions of each group.
        steps: optimizer step of each group.
        attribute: name of the attribute.
    """
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
    # (differs, verdict "different", correct) of every completion that states the attribute and gives a verdict.
    judged = [
        [
            (float(differs), float(not one.verdict), float(one.right))
            for one in group
            if one.verdict is not None and (differs := one.differs_in(attribute)) is not None
        ]
        for group in groups
    ]
    stated = [
        (float(value), float(not truth))
        for group, truth in zip(groups, same, strict=True)
        for one in group
        if (value := one.differs_in(attribute)) is not None
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
    # Equal values minus their mean can leave rounding errors, which must not count as variation.
    return float(np.clip(x @ y / scale, -1, 1)) if scale > 1e-12 * len(x) else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
