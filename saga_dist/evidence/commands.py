"""The commands ``saga-dist evidence ...``."""

from __future__ import annotations

import typer

from saga_dist.evidence.screen_command import screen

app = typer.Typer(help="Measure what the method does and where it can help.", no_args_is_help=True)
app.command()(screen)


@app.callback()
def _evidence() -> None:
    """A callback keeps the name of the command where there is only one."""
