"""The command ``saga-dist report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saga_dist.cli.arguments import RUN_HELP, Device
from saga_dist.cli.page import page_target, write_page
from saga_dist.utils.library_logging import quiet_libraries


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help=f"{RUN_HELP}; curves and results of further ones are shown beside it", metavar="RUN…"),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="file to write; default report.html in the first RUN")
    ] = None,
    groups: Annotated[int, typer.Option(min=0, help="recorded groups in the viewer, evenly over the steps")] = 200,
    rows: Annotated[int, typer.Option(min=0, help="queries in the retrieval gallery")] = 8,
    images: Annotated[int, typer.Option(min=10, help="images of the test split that are embedded for it")] = 4000,
    map_images: Annotated[int, typer.Option(min=0, help="images on the map of embeddings; about 4 KB each")] = 300,
    attention: Annotated[
        int, typer.Option(min=0, help="groups to read the MLLM's attention for; loads its language model")
    ] = 0,
    device: Device = "cpu",
) -> None:
    """Write one self-contained HTML page: results, curves, retrieval, attention, attributes, rollouts.

    With several runs, curves and results of all of them are side by side; all other parts are of the first.
    """
    quiet_libraries()
    from saga_dist.cli.progress import waiting

    target = page_target(runs[0], out, "report.html")
    with waiting(f"reading {runs[0]}"):
        from saga_dist.report.build import Settings, report_page

        settings = Settings(
            groups=groups, rows=rows, images=images, map_images=map_images, attention=attention, device=device
        )
        page = report_page(runs[0], settings, runs[1:])
    write_page(target, page)
