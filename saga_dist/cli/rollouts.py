"""The command ``saga-dist rollouts``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saga_dist.cli.arguments import RUN_HELP, Device
from saga_dist.cli.page import page_target, write_page
from saga_dist.errors import ConfigError
from saga_dist.utils.library_logging import quiet_libraries


def rollouts(
    run: Annotated[Path, typer.Argument(help=RUN_HELP, metavar="RUN")],
    step: Annotated[
        int | None, typer.Option(min=1, help="only this step, from 1; without --out, a list in the terminal")
    ] = None,
    pair: Annotated[str | None, typer.Option(help="one group in the terminal, e.g. s000013.m0.p03")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="page to write; default RUN/rollouts.html")] = None,
    groups: Annotated[
        int, typer.Option(min=1, help="groups on the page, evenly over the steps; with --step all of it")
    ] = 200,
    device: Device = "cpu",
) -> None:
    """Show recorded rollouts: a page with all completions of a group side by side, or one group in the terminal."""
    quiet_libraries()
    if pair is not None and out is not None:
        raise ConfigError("--pair with --out", where="command line", expected="one of them", fix="drop one")
    if (pair is not None or step is not None) and out is None:
        _show_in_terminal(run, step, pair)
        return
    from saga_dist.cli.progress import waiting

    target = page_target(run, out, "rollouts.html")
    with waiting(f"reading {run}"):
        from saga_dist.report.build import Settings, rollouts_page

        page = rollouts_page(run, Settings(groups=groups, device=device), step=step)
    write_page(target, page)


def _show_in_terminal(run: Path, step: int | None, pair: str | None) -> None:
    from rich.console import Console

    from saga_dist.cli.progress import waiting

    with waiting(f"reading {run}"):
        from saga_dist.report.sources import open_run, read_groups
        from saga_dist.report.terminal import find_group, print_group, print_groups
        from saga_dist.utils.pair_ids import step_of

        recorded = read_groups(open_run(run), step=step_of(pair) if step is None and pair is not None else step)
    if pair is None:
        print_groups(Console(), recorded.groups)
    else:
        print_group(Console(), find_group(recorded.groups, pair))
