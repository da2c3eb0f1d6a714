"""Results of an oracle screen: records, the JSON file and the terminal table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.table import Table

from saga_dist.config import Section
from saga_dist.config.json_files import load_json
from saga_dist.retrieval.run_comparison import paired_t_test
from saga_dist.utils.atomic_io import write_atomic

METRIC, TEXT, ATTENTION, BOTH = "metric", "text", "attention", "both"
"""Names of the rows of a screen: the metric loss alone, and with the oracle's text, its attention targets, or both."""
HEADINGS = {
    METRIC: "best metric loss",
    TEXT: "+ attribute text",
    ATTENTION: "+ attention",
    BOTH: "+ both",
}
"""Name of a row to its heading in the table."""
HOW_TO_READ = (
    "Recall@1 on unseen classes in percent, mean ± standard error over seeds. Text, attention, both: the metric loss "
    "with the oracle, the true answers in place of rollouts; in brackets the gain over the best metric loss and two p "
    "values, not corrected for the number of cells: the larger one, and the other one. Over seeds: a paired t-test of "
    "the runs; over classes: paired over the test classes, which says nothing about other runs. Learning rate, pooling "
    "and step were chosen on validation classes."
)
"""Explanation printed below the table."""


class ScreenRow(Section):
    """One row of a screen: the chosen setting and its results on unseen classes."""

    setting: str
    """Chosen setting: pooling, and the factor of the world's learning rate."""
    tried: dict[str, float]
    """Validation Recall@1, in [0, 1], of every setting tried, with the first seed."""
    selected_steps: tuple[int, ...]
    """Optimizer step with the best validation Recall@1, for each seed."""
    validation_recall_at_1: tuple[float, ...]
    """Recall@1 on validation classes at the selected step, in [0, 1], for each seed."""
    recall_at_1: tuple[float, ...] = Field(min_length=1)
    """Recall@1 on test classes at the selected step, in [0, 1], for each seed."""
    p_value: float | None = None
    """p-value of the difference to the metric loss, paired over classes, with hits averaged over the seeds, so that it
    says nothing about other runs (``gain`` adds the test over seeds); None for the metric loss itself."""

    @property
    def mean(self) -> float:
        """Mean of ``recall_at_1`` over the seeds."""
        return math.fsum(self.recall_at_1) / len(self.recall_at_1)

    @property
    def standard_error(self) -> float | None:
        """Standard error of ``mean`` over the seeds; None with one seed."""
        if len(self.recall_at_1) < 2:
            return None
        return statistics.stdev(self.recall_at_1) / math.sqrt(len(self.recall_at_1))


def gain(row: ScreenRow, metric: ScreenRow) -> str:
    """Returns the gain of a row over the metric loss, e.g. ``+5.4, p 0.342 over 2 seeds, < 0.001 over classes``.

    The larger p-value leads, because a gain is real only where neither other runs nor other classes would undo it. The
    text is empty for the metric loss itself.
    """
    if row.p_value is None:
        return ""
    num_seeds = len(row.recall_at_1)
    values = [(row.p_value, "over classes")]
    if num_seeds > 1:
        values.append((paired_t_test(row.recall_at_1, metric.recall_at_1).p_value, f"over {num_seeds} seeds"))
    texts = [f"{_p(value)} {source}" for value, source in sorted(values, reverse=True)]
    remark = "" if num_seeds > 1 else ", one run"
    return f"{100 * (row.mean - metric.mean):+.1f}, p {', '.join(texts)}{remark}"


class WorldResult(Section):
    """Results of the screen of one world."""

    world: str
    """Name of the world."""
    digest: str
    """Digest of the world's configuration."""
    seeds: tuple[int, ...]
    """Seeds of every row; the first was used for tuning."""
    steps: int
    """Optimizer steps of every run."""
    pairs_per_step: int
    """Image pairs per optimizer step."""
    num_queries: int
    """Number of test images."""
    num_classes: int
    """Number of test classes."""
    zero_shot_recall_at_1: float
    """Recall@1 of the pre-trained tower with mean pooling on the test classes, in [0, 1]."""
    rows: dict[str, ScreenRow]
    """Name of a row (``METRIC``, ``TEXT``, ``ATTENTION``, ``BOTH``) to its results."""


class Screen(Section):
    """The worlds screened so far, as written by ``--json``."""

    command: str
    """Last command that added a world."""
    worlds: tuple[WorldResult, ...] = ()
    """One result per world, in the order in which they were added."""

    def has(self, name: str, digest: str, seeds: Sequence[int]) -> bool:
        """Returns True when a world of this name and configuration digest was screened with these seeds."""
        return any((one.world, one.digest, one.seeds) == (name, digest, tuple(seeds)) for one in self.worlds)

    def with_result(self, result: WorldResult, *, command: str) -> Screen:
        """Returns a screen with the result added; an older result of the same name is dropped."""
        others = tuple(one for one in self.worlds if one.world != result.world)
        return Screen(command=command, worlds=(*others, result))

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            ConfigError: it cannot be written.
        """
        write_atomic(path, (self.model_dump_json(indent=2) + "\n").encode(), option="--json")


def load_screen(path: Path) -> Screen:
    """Returns the screen in a file.

    Raises:
        DataError: the file cannot be read, or does not hold a screen.
    """
    return load_json(path, Screen, what="a screen", fix="name another --json")


def table(screen: Screen) -> Table:
    """Returns the table for a terminal, one line per world."""
    shown = Table(title="Oracle screen", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column("world", no_wrap=True)
    for heading in ("zero-shot", *HEADINGS.values()):
        shown.add_column(heading, justify="right", no_wrap=heading == "zero-shot")
    for world in screen.worlds:
        cells = [_cell(world.rows[name], world.rows[METRIC]) for name in HEADINGS]
        shown.add_row(world.world, f"{100 * world.zero_shot_recall_at_1:.1f}", *cells)
    return shown


def _cell(row: ScreenRow, metric: ScreenRow) -> str:
    spread = "" if row.standard_error is None else f" ± {100 * row.standard_error:.1f}"
    gained = gain(row, metric)
    return f"{100 * row.mean:.1f}{spread}" + (f" ({gained})" if gained else "")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
