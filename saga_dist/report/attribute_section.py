"""The attribute section of the page: a table of statistics, and disagreement over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from saga_dist.data.prompts import PromptSpec
from saga_dist.report.attribute_stats import (
    AttributeRow,
    DescribedPair,
    attribute_table,
    attribute_values,
    disagreement_by_step,
)
from saga_dist.report.line_chart import NUM_COLOURS, Chart, Series, line_chart
from saga_dist.report.sources import Recorded, RecordedGroup
from saga_dist.report.text import shown_name


@dataclass(frozen=True, slots=True)
class AttributeStats:
    """Data of the attribute section."""

    rows: list[AttributeRow]
    """One row per attribute."""
    chart: Chart
    """Disagreement over the optimizer steps."""
    num_groups: int
    """Groups that were read."""
    num_contributing: int
    """Groups that carry a gradient, among those that were read."""
    num_read: int
    """Recorded steps that were read."""
    num_recordings: int
    """Recorded steps of the run."""


def describe(groups: Sequence[RecordedGroup], spec: PromptSpec) -> dict[str, list[DescribedPair]]:
    """Returns, by pair id, the attribute values and the verdict of each completion; empty when none are asked for.

    Args:
        groups: the groups.
        spec: the prompt; its JSON keys name the two descriptions.
    """
    return {one.group.pair.pair_id: _describe(one, spec) for one in groups} if spec.describes_images else {}


def _describe(recorded: RecordedGroup, spec: PromptSpec) -> list[DescribedPair]:
    group = recorded.group
    # Completions of a group are often equal, and parsing them takes most of the time.
    read = partial(attribute_values, verdict_key=spec.verdict_key, keys=spec.keys)
    values = {text: (read(text, spec.key_a), read(text, spec.key_b)) for text in set(group.completions.texts)}
    return [
        DescribedPair(*values[text], verdict, right=verdict == group.pair.same)
        for text, verdict in zip(group.completions.texts, group.verdicts, strict=True)
    ]


def attribute_stats(
    recorded: Recorded, descriptions: Mapping[str, Sequence[DescribedPair]], attributes: Sequence[str]
) -> AttributeStats | None:
    """Returns the section; None without described groups.

    Args:
        recorded: the groups that were read.
        descriptions: what ``describe`` returns for all of them.
        attributes: JSON keys of the attributes.
    """
    if not descriptions:
        return None
    described = [descriptions[one.group.pair.pair_id] for one in recorded.groups]
    steps = [one.step for one in recorded.groups]
    same = [one.group.pair.same for one in recorded.groups]
    rows = attribute_table(described, steps, same, attributes)
    drawn = sorted(rows, key=lambda row: -(row.disagreement or 0.0))[:NUM_COLOURS]
    lines = [
        Series(
            row.attribute,
            [(float(step), value) for step, value in disagreement_by_step(described, steps, row.attribute)],
        )
        for row in rows
        if row in drawn
    ]
    which = f"the {len(lines)} largest of {len(rows)}" if len(lines) < len(rows) else "within groups"
    return AttributeStats(
        rows=[replace(row, attribute=shown_name(row.attribute)) for row in rows],
        chart=line_chart(f"Disagreement, {which}", lines, unit="share", percent=True),
        num_groups=len(recorded.groups),
        num_contributing=sum(one.group.contributes for one in recorded.groups),
        num_read=recorded.num_read,
        num_recordings=recorded.num_recordings,
    )
