"""The entry point ``saga-dist``. Heavy imports happen inside the commands, so that --help and --dry-run stay fast.

Exit codes: 0 done; 1 a failure of the system; 2 a mistake that the user can correct (one line); 3 stopped on request,
before the first step or after writing a checkpoint (the same command resumes).
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from saga_dist import __version__
from saga_dist.cli import data, evidence
from saga_dist.cli.bench import bench
from saga_dist.cli.check_gpu import check_gpu
from saga_dist.cli.config import config
from saga_dist.cli.demo import demo
from saga_dist.cli.docs import docs
from saga_dist.cli.doctor import doctor
from saga_dist.cli.embed import embed
from saga_dist.cli.estimate import estimate
from saga_dist.cli.evaluate import evaluate
from saga_dist.cli.export import export
from saga_dist.cli.index import index
from saga_dist.cli.init import init
from saga_dist.cli.manifest import manifest
from saga_dist.cli.metrics import metrics
from saga_dist.cli.report import report
from saga_dist.cli.rollout import rollout
from saga_dist.cli.rollouts import rollouts
from saga_dist.cli.scale import scale
from saga_dist.cli.search import search
from saga_dist.cli.sweep import sweep
from saga_dist.cli.train import train
from saga_dist.cli.usage import UsageError, usage_text
from saga_dist.cli.watch import watch
from saga_dist.errors import SagaError
from saga_dist.utils.output_errors import disk_errors
from saga_dist.utils.printable import printable, printable_lines

COMMANDS = (
    init,
    train,
    rollout,
    demo,
    doctor,
    check_gpu,
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
    watch,
    bench,
    scale,
    config,
    metrics,
    docs,
)

app = typer.Typer(
    name="saga-dist",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
app.add_typer(evidence.app, name="evidence")
for _command in COMMANDS:
    app.command()(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"saga-dist {__version__}")
        raise typer.Exit


@app.callback()
def _group(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Train an image-retrieval encoder with a frozen multimodal LLM as its critic (SAGA)."""


def main() -> None:
    """Runs the command line; a mistake is printed as one line and ends the process with its exit code."""
    try:
        with disk_errors():
            code = app(standalone_mode=False, prog_name="saga-dist")
    except SagaError as error:
        line = " ".join(str(error).split())
        _end(f"error: {printable(line)}", error.exit_code)
    except UsageError as error:
        _end(printable_lines(usage_text(error)), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _end(text: str, exit_code: int) -> NoReturn:
    typer.echo(text, err=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
