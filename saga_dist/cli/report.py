"""The command ``saga-dist report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saga_dist.cli.arguments import RUN_HELP, Device
from saga_dist.cli.page import page_target, write_page
from saga_dist.utils.library_logging import quiet_libraries


def report(
    run: Annotated[Path, typer.Argument(help=RUN_HELP, metavar="RUN")],
    out: Annotated[Path | None, typer.Option("--out", help="file to write; default RUN/report.html")] = None,
    groups: Annotated[int, typer.Option(min=0, help="recorded groups in the viewer, evenly over the steps")] = 200,
    rows: Annotated[int, typer.Option(min=0, help="queries in the retrieval gallery")] = 8,
    images: Annotated[int, typer.Option(min=10, help="images of the test split that are embedded for it")] = 4000,
    attention: Annotated[
        int, typer.Option(min=0, help="groups to read the MLLM's attention for; loads its language model")
    ] = 0,
    device: Device = "cpu",
) -> None:
    """Write one self-contained HTML page: results, curves, retrieval, attention, attributes, rollouts."""
    quiet_libraries()
    from saga_dist.report.build import Settings, report_page

    target = page_target(run, out, "report.html")
    settings = Settings(groups=groups, rows=rows, images=images, attention=attention, device=device)
    write_page(target, report_page(run, settings))
