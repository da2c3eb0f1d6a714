"""Recorded groups in a terminal: a table of groups, or one group with its completions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from saga_dist.errors import DataError
from saga_dist.report.sources import RecordedGroup
from saga_dist.report.text import shown, shown_name
from saga_dist.report.viewer import engine_gaps


def print_groups(console: Console, groups: Sequence[RecordedGroup]) -> None:
    """Prints a table with one line per group: step, pair, truth, verdicts, mean reward, and if it has a gradient."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("step", "pair", "truth", "verdicts", "reward", "gradient"):
        table.add_column(heading, no_wrap=True)
    for recorded in groups:
        group = recorded.group
        table.add_row(
            str(recorded.step),
            Text(shown_name(group.pair.pair_id)),
            "same" if group.pair.same else "different",
            _verdicts(recorded),
            f"{float(group.rewards_G.mean()):.2f}",
            "yes" if group.contributes else "–",
        )
    console.print(table)


def print_group(console: Console, recorded: RecordedGroup) -> None:
    """Prints a group: its pair and step, then every completion.

    The texts are untrusted: they are printed without markup, and with control characters escaped.
    """
    group, completions = recorded.group, recorded.group.completions
    console.print(
        Text.assemble(
            (shown_name(group.pair.pair_id), "bold"),
            f"  step {recorded.step}, encoder version {completions.encoder_version} (staleness {recorded.staleness}), "
            f"images {group.pair.image_a} and {group.pair.image_b}, "
            f"classes {group.pair.label_a} and {group.pair.label_b}: {'same' if group.pair.same else 'different'}",
        )
    )
    for index, text in enumerate(completions.texts):
        console.print(_completion(recorded, index, text))


def find_group(groups: Sequence[RecordedGroup], pair_id: str) -> RecordedGroup:
    """Returns the group of a pair.

    Args:
        groups: groups to search.
        pair_id: id of the pair.

    Raises:
        DataError: no group has this pair.
    """
    for recorded in groups:
        if recorded.group.pair.pair_id == pair_id:
            return recorded
    known = [recorded.group.pair.pair_id for recorded in groups]
    raise DataError(
        f"no group of pair {pair_id!r}",
        where="--pair",
        expected=f"one of {len(known)} recorded, {known[0]} to {known[-1]}" if known else "a recorded pair",
        fix="list them with --step alone",
    )


def _completion(recorded: RecordedGroup, index: int, text: str) -> RenderableType:
    group, completions = recorded.group, recorded.group.completions
    verdict = group.verdicts[index]
    right = verdict == group.pair.same
    word = "no verdict" if verdict is None else "same" if verdict else "different"
    log_probs_T = completions.log_probs[index]
    likely = f", log p {float(log_probs_T.mean()):.3f} a token" if len(log_probs_T) else ""
    gaps_T = engine_gaps(group, index)
    if gaps_T is not None and len(gaps_T):
        likely += f", replay differs by {float(np.abs(gaps_T).mean()):.2g}"
    head = Text.assemble(
        (word, "green" if right else "red"),
        f"  reward {float(group.rewards_G[index]):g}, advantage {float(group.advantages_G[index]):+.2f}, "
        f"{len(completions.token_ids[index])} tokens ({shown_name(completions.finish_reasons[index])}){likely}",
    )
    return Panel(Group(head, Text(shown(text))), title=Text(str(index)), title_align="left", border_style="dim")


def _verdicts(recorded: RecordedGroup) -> Text:
    """Returns one letter per completion, s(ame), d(ifferent) or - without a verdict; correct verdicts are green."""
    line = Text()
    for verdict in recorded.group.verdicts:
        letter = "-" if verdict is None else "s" if verdict else "d"
        line.append(letter, "green" if verdict == recorded.group.pair.same else "red")
    return line
