"""The command ``saga-dist estimate``. Heavy imports happen inside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from saga_dist.errors import ConfigError
from saga_dist.utils.atomic_io import probe_output, write_atomic
from saga_dist.utils.library_logging import quiet_libraries

CALIBRATION_STEPS = 3
"""Optimizer steps that ``--calibrate`` runs."""


def estimate(
    config: Annotated[Path, typer.Argument(help="TOML file", metavar="CONFIG.toml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value …", metavar="[KEY=VALUE]…")] = None,
    gpus: Annotated[
        list[int] | None, typer.Option(min=1, help="number of GPUs to plan for; may be repeated [1, 8, 64]")
    ] = None,
    card: Annotated[
        str, typer.Option(help="auto (the GPU here, else the paper's H200 or this processor), h100, h200, …, cpu")
    ] = "auto",
    price: Annotated[float | None, typer.Option(min=0, help="price of one GPU for one hour, in any currency")] = None,
    measured: Annotated[
        Path | None,
        typer.Option(help="use measured rates: a file from --calibrate --json, or a run directory with finished steps"),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="first run a few real steps here, in one process, and use their rates")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write the estimate to this file")
    ] = None,
) -> None:
    """Estimate a run without training: bytes, operations, seconds, hours and cost, and where each role saturates."""
    if measured is not None and calibrate:
        raise ConfigError("--measured and --calibrate", where="command line", expected="one of them")
    if json_file is not None:
        probe_output(json_file, option="--json")
    quiet_libraries()
    from rich.console import Console

    from saga_dist.cli.console import widen
    from saga_dist.config import load_config
    from saga_dist.estimate import planner
    from saga_dist.estimate.rates import choose_card
    from saga_dist.estimate.render import print_calibration, print_estimate
    from saga_dist.estimate.to_json import as_json
    from saga_dist.runtime.build import set_threads

    console = Console()
    widen(console, 120)
    resolved = load_config(config, overrides or [])
    set_threads(resolved)
    device = choose_card(card, wants_gpu=planner.wants_gpu(resolved))
    steps = None
    if calibrate:
        rate_source, steps, peak = planner.calibrated_rates(resolved, device, CALIBRATION_STEPS)
    elif measured is not None:
        rate_source = planner.measured_rates(resolved, device, measured)
    else:
        rate_source = planner.assumed_rates(resolved, device)
    with planner.plan_inputs(resolved, device, rate_source) as plan_inputs:
        found = planner.estimate(plan_inputs, gpus or planner.GPUS)
        print_estimate(console, found, price)
        if steps is not None:
            print_calibration(console, found, steps, peak)
        if json_file is not None:
            figures = json.dumps(as_json(found, price, steps), indent=2) + "\n"
            write_atomic(json_file, figures.encode(), option="--json")
