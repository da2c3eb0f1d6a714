"""Expansion of a table into cells: the directory, configuration and progress of each run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from saga_dist.config import RunConfig, load_config
from saga_dist.config.find import TABLES, find_config
from saga_dist.errors import ConfigError, DataError, UserError
from saga_dist.retrieval.results import PRETRAINED, RESULTS_NAME, TRAINED, Results
from saga_dist.runtime.earlier_run import changed_keys
from saga_dist.runtime.validation import validate_run
from saga_dist.sweep.table import Table, Variant
from saga_dist.utils.atomic_io import write_atomic

FAILURES_NAME = "failures.json"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the table: a variant with a seed."""

    variant: Variant
    """Row of the table."""
    seed: int
    """``run.seed`` of the run."""
    directory: Path
    """Run directory."""
    config: RunConfig
    """Resolved configuration of the run."""
    option: int | None = None
    """Index of the option of a tuned variant; None for other variants."""

    @property
    def name(self) -> str:
        """Run directory relative to that of the table: ``VARIANT/seed_N``, or ``VARIANT/option_K/seed_N``."""
        return cell_name(self.variant, self.seed, self.option)

    @property
    def method(self) -> str:
        """Name of this cell's method in the results of its run."""
        return PRETRAINED if self.variant.pretrained else TRAINED

    @property
    def finished(self) -> bool:
        """True when the run's results exist; a run writes them last."""
        return (self.directory / RESULTS_NAME).is_file()

    def results(self) -> Results:
        """Returns the results of a finished cell.

        Raises:
            DataError: the results cannot be read.
        """
        return Results.load(self.directory / RESULTS_NAME)

    def progress(self) -> str:
        """Returns the progress as text: ``not started``, ``after step N of M`` or ``finished``."""
        metrics = self.directory / "metrics.jsonl"
        if self.finished or not metrics.is_file():
            return "finished" if self.finished else "not started"
        from saga_dist.metrics.log import MetricsLog  # imports torch

        steps = [row["step"] for row in MetricsLog(metrics).rows(allow_cut_tail=True)]
        return f"after step {max(steps)} of {self.config.run.steps}" if steps else "not started"


def plan(table: Table, path: Path, out: Path, *, overrides: Sequence[str], seeds: Sequence[int]) -> tuple[Cell, ...]:
    """Returns the cells in the order in which they run: all variants with the first seed, then with the next.

    Args:
        table: content of the table's file.
        path: the table's file; the path of the base configuration is relative to it.
        out: output directory of the table.
        overrides: ``section.key=value`` texts for every cell, which take precedence over the table.
        seeds: seeds to use instead of the table's; empty: the table's.

    Raises:
        ConfigError: a configuration is wrong, two variants have the same configuration, or ``out`` holds runs with
            other configurations.
    """
    for override in overrides:
        if override.partition("=")[0].strip() in ("run.seed", "run.directory"):
            raise ConfigError(f"override {override!r}", where="command line", fix="use --seed and --out")
    base = find_config(path, folders=TABLES).parent / table.config
    cells = []
    for seed, variant in product(seeds or table.seeds, table.trained):
        for option, texts in enumerate(variant.options) if variant.options else ((None, ()),):
            settings = [*table.overrides_of(seed), *variant.overrides, *texts, *overrides, f"run.seed={seed}"]
            name = cell_name(variant, seed, option)
            with _named(name):
                cells.append(Cell(variant, seed, out / name, load_config(base, settings), option))
    _refuse_duplicates(cells, path)
    for cell in cells:
        changed_keys(cell.directory, cell.config, option="--out")
    return tuple(cells)


def cell_name(variant: Variant, seed: int, option: int | None) -> str:
    """Returns the run directory of a cell relative to that of the table."""
    return f"{variant.name}/seed_{seed}" if option is None else f"{variant.name}/option_{option}/seed_{seed}"


def check(cells: Sequence[Cell]) -> list[str]:
    """Validates the run of every unfinished cell, before the first one starts.

    Returns:
        Each warning once, with the name of the first cell that has it.

    Raises:
        UserError: the error of ``saga-dist train --dry-run`` with the configuration of a cell, which it names.
    """
    warnings: dict[str, str] = {}
    for cell in cells:
        if not cell.finished:
            with _named(cell.name):
                for warning in validate_run(cell.config, cell.directory, option="--out"):
                    warnings.setdefault(warning, cell.name)
    return [f"{name}: {warning}" for warning, name in warnings.items()]


@contextmanager
def _named(cell: str) -> Iterator[None]:
    """Puts the name of a cell before the error of a block."""
    try:
        yield
    except UserError as error:
        raise type(error)(str(error), where=cell) from error


def read_failures(out: Path) -> dict[str, str]:
    """Returns the reason of each failed cell's last failure, by the name of the cell.

    Raises:
        DataError: the file of failures is damaged.
    """
    path = out / FAILURES_NAME
    try:
        tree = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), fix="delete it") from error
    return {str(name): str(reason) for name, reason in tree.items()}


def write_failures(out: Path, failures: dict[str, str]) -> None:
    """Writes the reasons of failed cells to a file of ``out``; removes the file when there are none."""
    path = out / FAILURES_NAME
    if failures:
        write_atomic(path, (json.dumps(failures, indent=2, sort_keys=True) + "\n").encode())
    else:
        path.unlink(missing_ok=True)


def _refuse_duplicates(cells: Sequence[Cell], path: Path) -> None:
    """Raises a ConfigError when two variants have the same configuration.

    This happens when an override of the command line sets a value that distinguishes them. An option of a tuned variant
    may be another variant's configuration, but not another option's of its own.
    """
    seen: dict[tuple[str, bool, str], Cell] = {}
    for cell in cells:
        tuned = "" if cell.option is None else cell.variant.name
        first = seen.setdefault((cell.config.digest(), cell.variant.pretrained, tuned), cell)
        if first is not cell:
            names = [one.name.removesuffix(f"/seed_{one.seed}") for one in (first, cell)]
            raise ConfigError(
                f"variants {names[0]} and {names[1]} are the same configuration",
                where=str(path),
                fix="leave what makes them differ to the table",
            )
