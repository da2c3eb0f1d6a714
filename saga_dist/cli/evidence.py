"""The command group ``saga-dist evidence``: show, screen, collect."""

from __future__ import annotations

import typer

from saga_dist.cli.evidence_collect import collect
from saga_dist.cli.evidence_screen import screen
from saga_dist.cli.evidence_show import show

app = typer.Typer(help="Measure what the method gains, and where.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Measure what the method gains, and where."""


for _command in (show, screen, collect):
    app.command()(_command)
