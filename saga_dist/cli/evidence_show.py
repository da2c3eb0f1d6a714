"""The command ``saga-dist evidence show``. Heavy imports happen inside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga_dist.utils.library_logging import quiet_libraries

if TYPE_CHECKING:
    from rich.table import Table

    from saga_dist.diagnostics.tables import TextTable


def show(
    run: Annotated[Path, typer.Argument(help="run directory with a checkpoint", metavar="RUN")],
    json: Annotated[Path | None, typer.Option("--json", help="file to write; default RUN/evidence.json")] = None,
    images: Annotated[int, typer.Option(min=8, help="unseen images to measure on, equally many per class")] = 800,
) -> None:
    """Measure what the trained encoder encodes of each attribute, and the gradient of each loss.

    Prints tables and writes evidence.json, which `saga-dist report` draws.
    """
    quiet_libraries()
    from rich.console import Console

    from saga_dist.cli.console import widen
    from saga_dist.diagnostics.measure import measure
    from saga_dist.diagnostics.schema import EVIDENCE_NAME
    from saga_dist.diagnostics.tables import evidence_tables
    from saga_dist.utils.atomic_io import probe_output

    path = json or run / EVIDENCE_NAME
    if json is not None or run.is_dir():  # a missing run is reported by what reads it
        probe_output(path, option="--json")
    evidence = measure(run, num_images=images)
    evidence.save(path)
    console = Console()
    widen(console, 120)
    console.print(
        f"step {evidence.step}; {evidence.num_images:,} images of {evidence.num_classes:,} unseen classes",
        highlight=False,
    )
    for grid in evidence_tables(evidence):
        console.print(_table(grid))
        if grid.note:
            console.print(f"[dim]{grid.note}[/dim]", highlight=False)
    for note in evidence.notes:
        console.print(f"left out: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"\n{path}: measured in {evidence.seconds:.0f} s", highlight=False, markup=False, soft_wrap=True)


def _table(grid: TextTable) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"\n{grid.title}", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    first, *others = grid.headings
    table.add_column(Text(first), no_wrap=True)
    for heading in others:
        table.add_column(Text(heading), justify="right")
    for row in grid.rows:
        table.add_row(*map(Text, row))
    return table
