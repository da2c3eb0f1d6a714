"""The command ``saga-dist watch``: a running job in the terminal, from the files of its run directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga_dist.cli.arguments import RUN_HELP, print_line
from saga_dist.utils.library_logging import quiet_libraries

if TYPE_CHECKING:
    from rich.console import Console

    from saga_dist.report.live import LiveRun, RunWatcher


def watch(
    run: Annotated[Path, typer.Argument(help=RUN_HELP, metavar="RUN")],
    once: Annotated[bool, typer.Option("--once", help="print one view and end")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="seconds between two looks at the files")] = 2.0,
) -> None:
    """Watch a run: steps, rewards, shares of the losses, workers, queue, the last group in words; ends with the run."""
    quiet_libraries()
    from rich.console import Console

    from saga_dist.cli.progress import waiting

    console = Console()
    with waiting(f"reading {run}"):
        from saga_dist.report.live import RunWatcher

        watcher = RunWatcher(run)
        state = watcher.read_certain() if once else watcher.read()
    if once or state.is_finished:
        _print_view(console, state)
    elif console.is_terminal:
        _show(console, watcher, every)
    else:
        _print_lines(watcher, every)


def _print_view(console: Console, state: LiveRun) -> None:
    from saga_dist.cli.console import widen
    from saga_dist.report.live.view import view

    widen(console, 160)
    console.print(view(state, width=console.width))


def _show(console: Console, watcher: RunWatcher, every_s: float) -> None:
    """Shows the view on a terminal, anew every few seconds, until the run has finished."""
    from rich.live import Live

    from saga_dist.report.live.view import view

    state = watcher.read()
    with Live(view(state, width=console.width), console=console, auto_refresh=False) as live:
        while not state.is_finished:
            time.sleep(every_s)
            state = watcher.read()
            live.update(view(state, width=console.width), refresh=True)


def _print_lines(watcher: RunWatcher, every_s: float) -> None:
    """Prints a line when a step was taken or the status is another, until the run has finished."""
    from saga_dist.cli.console import step_line
    from saga_dist.report.live.view import status
    from saga_dist.types import StepResult

    shown: tuple[int, str] | None = None
    while True:
        state = watcher.read()
        line = status(state)
        seen = state.step, line.partition(":")[0]
        if seen != shown:
            numbers = step_line(StepResult(state.step, state.steps[state.step])) if state.step else ""
            print_line(f"{line}; {numbers}" if numbers and not state.is_finished else line)
        if state.is_finished:
            return
        shown = seen
        time.sleep(every_s)
