"""The command ``saga-dist rollout``."""

from __future__ import annotations

from pathlib import Path

from saga_dist.cli.arguments import ConfigFile, Overrides, RunDir, Verbose, configure_logging
from saga_dist.cli.validation import require_valid
from saga_dist.runtime.stopping import stop_on_signal
from saga_dist.utils.printable import printable


def rollout(config: ConfigFile, overrides: Overrides = None, run_dir: RunDir = None, verbose: Verbose = False) -> None:
    """Run rollouts only: record the frozen MLLM's completions for run.steps steps of pairs, without training."""
    with stop_on_signal() as stop:
        from saga_dist.config import load_config
        from saga_dist.runtime.resolve import run_directory

        resolved = load_config(config, overrides or [])
        directory = run_directory(run_dir, resolved.run.directory, default=Path("runs") / f"{config.stem}-rollouts")
        configure_logging(verbose=verbose)
        from rich.console import Console

        from saga_dist.cli.progress import step_progress, waiting

        require_valid(resolved, directory)
        with waiting("loading torch"):
            from saga_dist.runtime import run

        console = Console()
        with step_progress("rollout", resolved.run.steps) as on_step:
            number = run.record(resolved, directory, on_step=on_step, stop=stop)
        console.print(
            f"{number} new steps in {printable(str(directory / 'rollouts'))}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
