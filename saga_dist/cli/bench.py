"""The command ``saga-dist bench``."""

from __future__ import annotations

import logging
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga_dist.utils.library_logging import quiet_libraries

if TYPE_CHECKING:
    from rich.console import Console

    from saga_dist.bench.common import Report, Size


class Bench(StrEnum):
    """Name of a benchmark; also the name of its module in ``saga_dist.bench``, except for ``all``."""

    ALL = "all"
    REPLAY = "replay"
    ROLLOUT = "rollout"
    TRANSPORT = "transport"
    EVALUATION = "evaluation"
    IMAGES = "images"
    START = "start"
    STEP = "step"
    SCALING = "scaling"


def bench(
    name: Annotated[Bench, typer.Argument(help="what to measure", metavar="[NAME]")] = Bench.ALL,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="file for the results; keeps the latest of each benchmark"),
    ] = None,
    quick: Annotated[
        bool | None,
        typer.Option("--quick/--full", help="reduced sizes, or the sizes for which the targets are stated"),
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
) -> None:
    """Measure saga_dist against an alternative implementation, in turns in one run: replay, rollout, transport,
    evaluation, images, start, step, scaling; or all."""
    # torch and vLLM read these when they are imported; one thread makes processor time comparable.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    quiet_libraries()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")

    from rich.console import Console

    from saga_dist.bench.common import Size
    from saga_dist.bench.records import BenchRecord, markdown, records_of_this_machine, save, with_bench
    from saga_dist.utils.atomic_io import probe_output

    size = Size.QUICK if (name is Bench.ALL if quick is None else quick) else Size.FULL
    console = Console()
    if json_file is not None:
        probe_output(json_file, option="--json")
    figures = records_of_this_machine(json_file)
    for chosen in [member for member in Bench if member is not Bench.ALL] if name is Bench.ALL else [name]:
        load = round(os.getloadavg()[0], 1)
        measured = BenchRecord(size=size, load=load, report=measure(chosen, size))
        if as_markdown:
            typer.echo(markdown(measured))
        else:
            print_report(console, measured.report)
        figures = with_bench(figures, measured)
        if json_file is not None:  # after each: a bench that fails later loses nothing
            save(figures, json_file)


def measure(name: Bench, size: Size) -> Report:
    """Returns the report of one benchmark.

    Args:
        name: any benchmark but ``Bench.ALL``.
        size: amount of work.
    """
    from importlib import import_module

    report: Report = import_module(f"saga_dist.bench.{name.value}").run(size)
    return report


def print_report(console: Console, report: Report) -> None:
    """Prints a benchmark's report as a table of at most 80 columns, then its notes."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from saga_dist.bench.records import number, verdict

    title = f"\n{report.bench}: ours against {report.alternative}"
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("case")
    for heading in ("ours", "other", "unit", "ratio", "bar", "met", "equal"):
        table.add_column(heading, justify="left" if heading == "unit" else "right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            row.case,
            number(row.ours),
            number(row.other),
            row.unit,
            number(row.ratio),
            number(row.bar),
            verdict(row.met),
            "yes" if row.equal else "NO",
        )
    console.print(table)
    for note in report.notes:
        console.print(note, highlight=False)
