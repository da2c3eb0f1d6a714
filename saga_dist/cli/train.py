"""The command ``saga-dist train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saga_dist.cli.arguments import ConfigFile, Overrides, RunDir, Verbose, configure_logging, print_line
from saga_dist.cli.validation import require_valid
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
        from saga_dist.runtime.resolve import resolve_run

        resolved, directory, fitted = resolve_run(
            config, overrides or [], run_dir=run_dir, from_recording=from_recording, fit_to_data=fit
        )
        if fitted is not None:
            print_line(f"fitted to the data: {' '.join(fitted) or 'every setting fits already'}")
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
