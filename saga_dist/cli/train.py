"""The command ``saga-dist train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saga_dist.cli.arguments import ConfigFile, Overrides, RunDir, Verbose, configure_logging, run_directory
from saga_dist.cli.validation import fitted_overrides, require_valid
from saga_dist.runtime.stopping import stop_on_signal
from saga_dist.utils.printable import printable, printable_lines


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    from_recording: Annotated[
        Path | None, typer.Option(help="take groups from this run directory's rollouts/; no rollout worker is started")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="resolve and check the configuration, train nothing")
    ] = False,
    fit: Annotated[
        bool, typer.Option("--fit-to-data", help="lower batch, images per class, pairs … to what the data set allows")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Train from a configuration; the same command resumes."""
    with stop_on_signal() as stop:
        from saga_dist.config import load_config

        recording = [] if from_recording is None else [f"rollout.recording={from_recording}"]
        given = [*(overrides or []), *recording]
        resolved = load_config(config, given)
        if fit:
            resolved = load_config(config, [*given, *fitted_overrides(resolved)])
        directory = run_directory(run_dir, resolved.run.directory, default=Path("runs") / config.stem)
        if dry_run:
            from saga_dist.runtime.preflight import describe

            typer.echo(printable_lines(describe(resolved, directory)))
            return
        configure_logging(verbose=verbose)
        from rich.console import Console

        from saga_dist.cli.progress import step_progress, waiting

        require_valid(resolved, directory)
        with waiting("loading torch"):
            from saga_dist.cli.console import print_results
            from saga_dist.runtime import run

        console = Console()
        with step_progress("train", resolved.run.steps) as on_step:
            results = run.train(resolved, directory, on_step=on_step, stop=stop)
        print_results(console, results.methods)
        console.print(f"run directory: {printable(str(directory))}", highlight=False, markup=False, soft_wrap=True)
