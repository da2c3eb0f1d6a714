"""The command ``saga-dist doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saga_dist.cli.arguments import Overrides, configure_logging


def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file; without it the built-in birds", metavar="[CONFIG.toml]")
    ] = None,
    overrides: Overrides = None,
    smoke: Annotated[bool, typer.Option(help="judge one pair through the real engine and take one step")] = True,
) -> None:
    """Check machine and configuration before a run: devices, versions, memory, model, data, one real pair and step.

    The step is not kept. It measures the share of each loss in the gradient.
    """
    configure_logging()
    from saga_dist.cli.doctor_checks import run_checks

    raise typer.Exit(run_checks(config, overrides or [], smoke=smoke))
