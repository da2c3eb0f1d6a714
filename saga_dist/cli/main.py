"""The entry point ``saga-dist``. Heavy imports happen inside the commands, so that --help and --dry-run stay fast.

Exit codes: 0 done; 1 a failure of the system; 2 a mistake that the user can correct (one line); 3 stopped on request,
before the first step or after writing a checkpoint (the same command resumes).
"""

from __future__ import annotations

import sys

import typer

from saga_dist.cli import data, evidence
from saga_dist.cli.bench import bench
from saga_dist.cli.demo import demo
from saga_dist.cli.doctor import doctor
from saga_dist.cli.embed import embed
from saga_dist.cli.estimate import estimate
from saga_dist.cli.evaluate import evaluate
from saga_dist.cli.export import export
from saga_dist.cli.index import index
from saga_dist.cli.manifest import manifest
from saga_dist.cli.report import report
from saga_dist.cli.rollout import rollout
from saga_dist.cli.rollouts import rollouts
from saga_dist.cli.scale import scale
from saga_dist.cli.search import search
from saga_dist.cli.sweep import sweep
from saga_dist.cli.train import train
from saga_dist.errors import SagaError
from saga_dist.utils.output_errors import disk_errors
from saga_dist.utils.printable import printable

COMMANDS = (
    train,
    rollout,
    demo,
    doctor,
    estimate,
    evaluate,
    sweep,
    manifest,
    export,
    embed,
    index,
    search,
    report,
    rollouts,
    bench,
    scale,
)

app = typer.Typer(
    name="saga-dist",
    help="Train an image-retrieval encoder with a frozen multimodal LLM as its critic (SAGA).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data.app, name="data")
app.add_typer(evidence.app, name="evidence")
for _command in COMMANDS:
    app.command()(_command)


def main() -> None:
    """Runs the command line; a ``SagaError`` is printed as one line and ends the process with its exit code."""
    try:
        with disk_errors():
            app()
    except SagaError as error:
        line = " ".join(str(error).split())
        typer.echo(f"error: {printable(line)}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
