"""The command ``saga-dist evidence collect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def collect(
    directories: Annotated[
        list[Path] | None,
        typer.Argument(help="directories of sweeps; none are needed with --keep", metavar="DIRECTORY…"),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="file of an earlier --json; its rows that have more runs are kept")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the tables to this file")] = None,
    figure_file: Annotated[Path | None, typer.Option("--figure", help="draw the tables to this file, as SVG")] = None,
) -> None:
    """Collect the tables of several sweeps into one JSON file and one figure; print them side by side.

    Also printed: every comparison with its intervals over seeds and over classes, and the training of every row.
    """
    from saga_dist.errors import ConfigError
    from saga_dist.sweep.collected import all_comparisons, all_training, keep_longer_rows, load_collected, side_by_side
    from saga_dist.sweep.collected import collect as collect_tables
    from saga_dist.sweep.figure import figure
    from saga_dist.utils.atomic_io import probe_output, write_atomic
    from saga_dist.utils.printable import printable_lines

    if not directories and not keep:
        raise ConfigError("no tables", where="command line", fix="name directories of sweeps, or --keep FILE")
    for path, option in ((json_file, "--json"), (figure_file, "--figure")):
        if path is not None:
            probe_output(path, option=option)
    collected = collect_tables(directories or [])
    if keep:
        collected = keep_longer_rows(load_collected(keep), collected)
    if json_file:
        write_atomic(json_file, (collected.model_dump_json(indent=1) + "\n").encode(), option="--json")
    if figure_file:
        write_atomic(figure_file, figure(collected).encode(), option="--figure")
    for shown in (side_by_side, all_comparisons, all_training):
        typer.echo(printable_lines(shown(collected)))
    unfinished = sum(len(table.missing) for table in collected.tables.values())
    typer.echo(f"{len(collected.tables)} tables, {collected.num_runs} runs, {unfinished} without results")
