"""The command ``saga-dist sweep``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga_dist.cli.arguments import configure_logging
from saga_dist.errors import TrainingError
from saga_dist.runtime.stopping import stop_on_signal
from saga_dist.utils.output_errors import refuse_package_cache
from saga_dist.utils.printable import printable, printable_lines

if TYPE_CHECKING:
    from rich.console import Console

    from saga_dist.sweep.plan import Cell
    from saga_dist.sweep.table import Table
    from saga_dist.types import StepResult

log = logging.getLogger(__name__)


def sweep(
    table: Annotated[Path, typer.Argument(help="TOML file of a table", metavar="TABLE.toml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value …, for every cell", metavar="[KEY=VALUE]…")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="directory of the runs; the same directory resumes [runs/TABLE]")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", min=0, help="seed, instead of the table's; may be repeated")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="resolve and check every cell, train nothing")] = False,
    show: Annotated[bool, typer.Option("--show", help="show the table of finished cells, train nothing")] = False,
) -> None:
    """Run a table: every variant with every seed; the same command resumes.

    Writes OUT/VARIANT/seed_N/ (ordinary runs), OUT/table.json and OUT/table.md.
    """
    with stop_on_signal() as stop:
        configure_logging()
        from rich.console import Console

        from saga_dist.cli.progress import waiting
        from saga_dist.sweep.plan import check, plan, read_failures
        from saga_dist.sweep.table import load_table

        console = Console()
        loaded = load_table(table)
        directory = (out or Path("runs") / table.stem).absolute()
        if not show:
            refuse_package_cache(directory, option="--out")
        with waiting(f"reading the cells of {table}"):
            cells = plan(loaded, table, directory, overrides=overrides or [], seeds=seed or ())
        if show:
            _show(loaded, cells, directory, read_failures(directory), console, write=False)
            return
        with waiting(f"checking {len(cells)} cells"):
            warnings = check(cells)
        for warning in warnings:
            log.warning("%s", warning)
        if dry_run:
            _list_cells(cells, loaded, console)
            return
        from saga_dist.utils.directory_owner import owned_directory

        with waiting("loading torch"):
            from saga_dist.sweep.runner import run_sweep
        with owned_directory(directory, option="--out"):  # the table's files too have one writer
            try:
                failures = run_sweep(cells, directory, progress=_progress, stop=stop)
            finally:
                _show(loaded, cells, directory, read_failures(directory), console, write=True)
        if failures:
            name, reason = next(iter(failures.items()))
            raise TrainingError(
                f"{len(failures)} of {len(cells)} cells failed, first {name}: {reason}",
                where=str(directory),
                fix="mend it; the same command tries them again",
            )


def _list_cells(cells: Sequence[Cell], table: Table, console: Console) -> None:
    from saga_dist.runtime.preflight import describe
    from saga_dist.sweep.forecast import forecast

    base = next(cell for cell in cells if cell.variant.name == table.baseline)
    console.print(
        printable_lines(describe(base.config, base.directory)),
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    console.print(f"\n{forecast(cells)}; what sets each apart from {base.name}:", highlight=False)
    width = max(len(cell.name) for cell in cells) + 2
    for cell in cells:
        changed = [line.replace(": ", " = ", 1) for line in cell.config.differences(base.config)]
        values = [line.rpartition(" != ")[0] for line in changed if not line.startswith("run.seed")]
        what = "evaluation only" if cell.variant.pretrained else f"{cell.config.run.steps} steps"
        line = f"{cell.name:<{width}}{cell.progress():<22}{what:<17}{', '.join(values)}"
        console.print(printable(line.rstrip()), highlight=False, soft_wrap=True, markup=False)


def _show(
    table: Table, cells: Sequence[Cell], out: Path, failures: dict[str, str], console: Console, *, write: bool
) -> None:
    from rich.markup import escape

    from saga_dist.cli.console import widen
    from saga_dist.cli.progress import waiting

    with waiting(f"summarising {len(cells)} cells"):
        from saga_dist.sweep.render import (
            HOW_TO_READ,
            MARKDOWN_NAME,
            choices,
            sources,
            terminal,
            unfindable,
            write_summary,
        )
        from saga_dist.sweep.summary import summarise

        summary = summarise(table, cells, failures)
    widen(console, 140)
    console.print()
    for part in terminal(summary):
        console.print(part)
    console.print(HOW_TO_READ, highlight=False)
    for line in (*unfindable(summary), *choices(summary), *sources(summary)):
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
    for name, reason in summary.missing.items():
        console.print(escape(printable(f"without results: {name}: {reason}")), highlight=False, soft_wrap=True)
    if write:
        write_summary(summary, out)
        console.print(f"written: {printable(str(out / MARKDOWN_NAME))}", highlight=False, markup=False, soft_wrap=True)


def _progress(cell: Cell) -> AbstractContextManager[Callable[[StepResult], None]]:
    from saga_dist.cli.progress import step_progress

    return step_progress(cell.name, cell.config.run.steps)
