"""The commands ``saga-dist evidence ...``. Heavy imports happen inside them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure what each loss does to the encoder.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Measure what each loss does to the encoder."""


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="run directory with a checkpoint", metavar="RUN")],
    json: Annotated[Path | None, typer.Option("--json", help="file to write; default RUN/evidence.json")] = None,
    images: Annotated[int, typer.Option(min=8, help="unseen images to look at, equally many of each class")] = 800,
) -> None:
    """Probe, read out and pull: what the trained encoder shows of each attribute, and which loss does what.

    Prints tables and writes evidence.json, which `saga-dist report` draws.
    """
    # Before any heavy import: libraries read these once.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from rich.console import Console

    from saga_dist.evidence.measure import measure
    from saga_dist.evidence.record import EVIDENCE_NAME
    from saga_dist.evidence.tables import tables

    evidence = measure(run, num_images=images)
    path = json or run / EVIDENCE_NAME
    evidence.save(path)
    console = Console()
    if not console.is_terminal:  # a file or a job log: nobody is served by columns cut to 80 characters
        console.width = max(console.width, 120)
    for part in tables(evidence):
        console.print(part)
    for note in evidence.notes:
        console.print(f"left out: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{path}: measured in {evidence.seconds:.0f} s", highlight=False, markup=False, soft_wrap=True)
