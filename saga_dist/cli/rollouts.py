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
        int | None, typer.Option(min=0, help="only this step; without --out, a list in the terminal")
    ] = None,
    pair: Annotated[str | None, typer.Option(help="one group in the terminal, e.g. s000012.m0.p03")] = None,
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
        from rich.console import Console

        from saga_dist.report.sources import open_run, read_groups
        from saga_dist.report.terminal import find_group, print_group, print_groups, step_of

        opened, console = open_run(run), Console()
        recorded = read_groups(opened, step=step_of(pair) if step is None and pair is not None else step)
        if pair is None:
            print_groups(console, recorded.groups)
        else:
            print_group(console, find_group(recorded.groups, pair))
        return
    from saga_dist.report.build import Settings, rollouts_page

    target = page_target(run, out, "rollouts.html")
    settings = Settings(groups=groups, device=device)
    write_page(target, rollouts_page(run, settings, step=step))
