"""The command ``saga-dist demo``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from saga_dist.cli.arguments import Overrides, RunDir, Verbose, configure_logging
from saga_dist.cli.validation import require_valid
from saga_dist.runtime.stopping import stop_on_signal


def demo(
    overrides: Overrides = None,
    run_dir: RunDir = None,
    runtime: Annotated[str, typer.Option(help="ray or serial")] = "ray",
    engine: Annotated[str, typer.Option(help="vllm, transformers or package.module:object")] = "vllm",
    ablations: Annotated[bool, typer.Option(help="add the rows + GRPO only and + KL only")] = False,
    verbose: Verbose = False,
) -> None:
    """Train on the built-in birds and compare three rows: pre-trained, metric loss only, SAGA."""
    with stop_on_signal() as stop:
        configure_logging(verbose=verbose)
        from saga_dist.cli.progress import waiting
        from saga_dist.config import load_config
        from saga_dist.runtime.resolve import run_directory
        from saga_dist.standin import DEMO_CONFIG

        # The time in the name makes a demo without --run-dir start a new run instead of resuming one.
        directory = run_directory(run_dir, "", default=Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S"))
        chosen = [f"runtime.kind={runtime}", f"rollout.engine={engine}", *(overrides or [])]
        require_valid(load_config(DEMO_CONFIG, chosen), directory)
        with waiting("loading torch"):
            from saga_dist.cli.demo_rows import run_demo

        run_demo(directory, chosen, ablations=ablations, stop=stop)
