"""What a screen found: its records, its file and its table."""

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
from saga_dist.utils.atomic_io import write_output

METRIC, TEXT, ATTENTION, BOTH = "metric", "text", "attention", "both"
HEADINGS = {
    METRIC: "best metric loss",
    TEXT: "+ attribute text",
    ATTENTION: "+ attention",
    BOTH: "+ both",
}
HOW_TO_READ = (
    "Recall@1 on unseen classes in percent, mean ± standard error over seeds. Text, attention, both: the metric loss "
    "with the oracle, which always says the truth; in brackets the gain over the best metric loss and its p value "
    "(paired over classes, not corrected for the number of cells). Learning rate, pooling and step were chosen on "
    "validation classes."
)


class ScreenRow(Section):
    """One row: what was chosen, and what it found on unseen classes."""

    setting: str
    """Pooling, and the factor on the world's learning rate."""
    tried: dict[str, float]
    """Validation Recall@1 of every setting, first seed."""
    selected_steps: tuple[int, ...]
    """Of each seed, by validation classes."""
    validation_recall_at_1: tuple[float, ...]
    recall_at_1: tuple[float, ...] = Field(min_length=1)
    """On test classes, of each seed; a share."""
    p_value: float | None = None
    """Against the metric loss: paired over classes, hits averaged over the seeds."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return math.fsum(self.recall_at_1) / len(self.recall_at_1)

    @property
    def standard_error(self) -> float | None:
        """Over seeds; None with one."""
        if len(self.recall_at_1) < 2:
            return None
        return statistics.stdev(self.recall_at_1) / math.sqrt(len(self.recall_at_1))


class WorldResult(Section):
    """What the screen says of a world."""

    world: str
    digest: str
    """Of the world's configuration."""
    seeds: tuple[int, ...]
    steps: int
    pairs_per_step: int
    num_queries: int
    num_classes: int
    zero_shot_recall_at_1: float
    rows: dict[str, ScreenRow]


class Screen(Section):
    """The worlds screened so far: what ``--json`` writes."""

    command: str
    """The last one that added a world."""
    worlds: tuple[WorldResult, ...] = ()

    def has(self, name: str, digest: str, seeds: Sequence[int]) -> bool:
        """Returns True when this very world was screened with these seeds."""
        return any((one.world, one.digest, one.seeds) == (name, digest, tuple(seeds)) for one in self.worlds)

    def with_result(self, result: WorldResult, *, command: str) -> Screen:
        """Returns a screen with this result, in place of an older one of the same name."""
        others = tuple(one for one in self.worlds if one.world != result.world)
        return Screen(command=command, worlds=(*others, result))

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            ConfigError: it cannot be written.
        """
        write_output(path, (self.model_dump_json(indent=2) + "\n").encode(), option="--json")


def load_screen(path: Path) -> Screen:
    """Returns the screen in a file.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    return load_json(path, Screen, what="a screen", fix="name another --json")


def table(screen: Screen) -> Table:
    """Returns the table for a terminal: a line per world."""
    shown = Table(title="Oracle screen", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    shown.add_column("world", no_wrap=True)
    for heading in ("zero-shot", *HEADINGS.values()):
        shown.add_column(heading, justify="right", no_wrap=True)
    for world in screen.worlds:
        cells = [_cell(world.rows[name], world.rows[METRIC]) for name in HEADINGS]
        shown.add_row(world.world, f"{100 * world.zero_shot_recall_at_1:.1f}", *cells)
    return shown


def _cell(row: ScreenRow, metric: ScreenRow) -> str:
    spread = "" if row.standard_error is None else f" ± {100 * row.standard_error:.1f}"
    figure = f"{100 * row.mean:.1f}{spread}"
    if row.p_value is None:
        return figure
    p_value = "< .001" if row.p_value < 0.001 else f"{row.p_value:.3f}".removeprefix("0")
    return f"{figure} ({100 * (row.mean - metric.mean):+.1f}, p {p_value})"
