"""The commands that look into a run: report, rollouts. Heavy imports happen inside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga_dist.errors import ConfigError
from saga_dist.utils.atomic_io import write_output
from saga_dist.utils.library_logging import quiet_libraries

if TYPE_CHECKING:
    from collections.abc import Callable

    from saga_dist.report.build import Page

RUN_HELP = "run directory of a finished or running training"


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command("report")(report)
    app.command("rollouts")(rollouts)


def report(
    run: Annotated[Path, typer.Argument(help=RUN_HELP, metavar="RUN")],
    out: Annotated[Path | None, typer.Option("--out", help="file to write; default RUN/report.html")] = None,
    groups: Annotated[int, typer.Option(min=0, help="recorded groups in the viewer, evenly over the steps")] = 200,
    rows: Annotated[int, typer.Option(min=0, help="queries in the retrieval gallery")] = 8,
    images: Annotated[int, typer.Option(min=10, help="images of the test split that are embedded for it")] = 4000,
    attention: Annotated[
        int, typer.Option(min=0, help="groups to read the MLLM's attention for; loads its language model")
    ] = 0,
    device: Annotated[str, typer.Option(help="where the encoder runs: cpu, cuda, …")] = "cpu",
) -> None:
    """Write one self-contained HTML page: results, curves, retrieval, attention, attributes, rollouts."""
    quiet_libraries()
    from saga_dist.report.build import Settings, report_page

    settings = Settings(groups=groups, rows=rows, images=images, attention=attention, device=device)
    _write(out or run / "report.html", lambda: report_page(run, settings))


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
    device: Annotated[str, typer.Option(help="where the encoder runs: cpu, cuda, …")] = "cpu",
) -> None:
    """Look at recorded rollouts: a page with every completion of a group side by side, or one group in the terminal."""
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

    settings = Settings(groups=groups, device=device)
    _write(out or run / "rollouts.html", lambda: rollouts_page(run, settings, step=step))


def _write(path: Path, make: Callable[[], Page]) -> None:
    page = make()
    content = page.html.encode()
    write_output(path, content, option="--out")
    for line in page.lines:
        _say(line)
    _say(f"{path}: {len(content) / 1e6:.1f} MB, open it in a browser")


def _say(line: str) -> None:
    from saga_dist.report.text import shown

    typer.echo(shown(line))
