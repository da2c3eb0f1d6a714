"""The command line. Heavy imports happen inside the commands: --help and --dry-run stay fast.

Exit codes: 0 done; 1 a failure of the system; 2 a mistake the user can mend (one line); 3 stopped on request after
writing a checkpoint (the same command resumes).
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from saga_dist.cli import data
from saga_dist.cli.bench import bench
from saga_dist.cli.estimate import estimate
from saga_dist.cli.evaluate import evaluate
from saga_dist.cli.evidence import app as evidence_app
from saga_dist.cli.evidence_collect import collect
from saga_dist.cli.export import register as register_encoder_commands
from saga_dist.cli.manifest import manifest
from saga_dist.cli.report import register as register_report_commands
from saga_dist.cli.scale import scale
from saga_dist.cli.sweep import sweep
from saga_dist.errors import SagaError
from saga_dist.utils.library_logging import quiet_libraries
from saga_dist.utils.printable import log_to_stderr, printable, printable_lines

app = typer.Typer(
    name="saga-dist",
    help="Train an image-retrieval encoder with a frozen multimodal LLM as its critic (SAGA).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data.app, name="data")
app.add_typer(evidence_app, name="evidence")

Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value …", metavar="[KEY=VALUE]…")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="where the run lives; the same directory resumes")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="log every event")]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="TOML file", metavar="CONFIG.toml")],
    overrides: Overrides = None,
    run_dir: RunDir = None,
    from_recording: Annotated[
        Path | None, typer.Option(help="take groups from this run directory's rollouts/; no rollout worker is started")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="resolve and check the configuration, train nothing")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Train from a configuration; the same command resumes."""
    from saga_dist.config import load_config

    recording = [] if from_recording is None else [f"rollout.recording={from_recording}"]
    resolved = load_config(config, [*(overrides or []), *recording])
    directory = _run_directory(run_dir, resolved.run.directory, default=Path("runs") / config.stem)
    if dry_run:
        from saga_dist.runtime.preflight import describe

        typer.echo(printable_lines(describe(resolved, directory)))
        return
    _configure_logging(verbose)
    from rich.console import Console

    from saga_dist.cli.console import print_results, step_progress
    from saga_dist.runtime import run

    console = Console()
    with step_progress(console, "train", resolved.run.steps) as on_step:
        results = run.train(resolved, directory, on_step=on_step)
    print_results(console, results.methods)
    console.print(f"run directory: {printable(str(directory))}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def rollout(
    config: Annotated[Path, typer.Argument(help="TOML file", metavar="CONFIG.toml")],
    overrides: Overrides = None,
    run_dir: RunDir = None,
    verbose: Verbose = False,
) -> None:
    """Only roll out: record what the frozen MLLM says for run.steps steps of pairs, and train nothing."""
    from saga_dist.config import load_config

    resolved = load_config(config, overrides or [])
    directory = _run_directory(run_dir, resolved.run.directory, default=Path("runs") / f"{config.stem}-rollouts")
    _configure_logging(verbose)
    from rich.console import Console

    from saga_dist.cli.console import step_progress
    from saga_dist.runtime import run

    console = Console()
    with step_progress(console, "rollout", resolved.run.steps) as on_step:
        number = run.record(resolved, directory, on_step=on_step)
    console.print(
        f"{number} new steps in {printable(str(directory / 'rollouts'))}", highlight=False, markup=False, soft_wrap=True
    )


@app.command()
def demo(
    overrides: Overrides = None,
    run_dir: RunDir = None,
    runtime: Annotated[str, typer.Option(help="ray or serial")] = "ray",
    engine: Annotated[str, typer.Option(help="vllm, transformers or package.module:object")] = "vllm",
    ablations: Annotated[bool, typer.Option(help="add the rows + GRPO only and + KL only")] = False,
    verbose: Verbose = False,
) -> None:
    """Train on the built-in birds, for real: pre-trained, metric loss only, SAGA."""
    _configure_logging(verbose)
    from saga_dist.cli.demo import run_demo

    # A demo without --run-dir starts afresh.
    directory = run_dir or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    chosen = [f"runtime.kind={runtime}", f"rollout.engine={engine}", *(overrides or [])]
    run_demo(directory, chosen, ablations=ablations)


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file; without it the built-in birds", metavar="[CONFIG.toml]")
    ] = None,
    overrides: Overrides = None,
    smoke: Annotated[bool, typer.Option(help="judge one pair through the real engine")] = True,
) -> None:
    """Check this machine and a configuration before a run: devices, versions, memory, model, data, one real pair."""
    _configure_logging(verbose=False)
    from saga_dist.cli.doctor import examine

    raise typer.Exit(examine(config, overrides or [], smoke=smoke))


app.command()(estimate)
app.command()(evaluate)
app.command()(sweep)
evidence_app.command()(collect)  # of sweeps, which know the instruments and not the other way round
app.command()(manifest)
register_encoder_commands(app)
register_report_commands(app)
app.command()(bench)
app.command()(scale)


def _run_directory(option: Path | None, configured: str, *, default: Path) -> Path:
    return option or (Path(configured) if configured else default)


def _configure_logging(verbose: bool) -> None:
    quiet_libraries(verbose=verbose)
    log_to_stderr()
    logging.getLogger("saga_dist").setLevel(logging.DEBUG if verbose else logging.INFO)


def main() -> None:
    """Entry point: errors of ours are one line and an exit code."""
    try:
        app()
    except SagaError as error:
        line = " ".join(str(error).split())
        typer.echo(f"error: {printable(line)}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
