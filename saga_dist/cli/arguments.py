"""Argument types and helper functions shared by several commands."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from saga_dist.utils.library_logging import quiet_libraries
from saga_dist.utils.printable import printable
from saga_dist.utils.terminal import log_to_terminal

ConfigFile = Annotated[Path, typer.Argument(help="TOML file", metavar="CONFIG.toml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value …", metavar="[KEY=VALUE]…")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="where the run lives; the same directory resumes")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="log every event")]
Device = Annotated[str, typer.Option(help="where the encoder runs: cpu, cuda, …")]
Family = Annotated[
    str,
    typer.Option(
        "--family",
        help="package.module:object of the encoder's model family, where it is not built in; runs that code",
        metavar="PATH",
    ),
]
ENCODER_HELP = "run directory, or the folder of an encoder"
RUN_HELP = "run directory of a finished or running training"


def configure_logging(*, verbose: bool = False) -> None:
    """Sends the log of this package to standard error and silences other libraries; call it before any heavy import.

    Args:
        verbose: log at DEBUG instead of INFO, and let other libraries log more.
    """
    quiet_libraries(verbose=verbose)
    log_to_terminal()
    logging.getLogger("saga_dist").setLevel(logging.DEBUG if verbose else logging.INFO)


def print_line(line: str) -> None:
    """Prints one line to standard output, with control characters escaped for the terminal."""
    typer.echo(printable(line))
