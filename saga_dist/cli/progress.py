"""Progress on standard error: a spinner or a bar on a terminal, lines at growing intervals elsewhere.

Commands show no other progress, so that none of them is ever silent, into a pipe or a job log included. The console is
the one of the log (``utils/terminal.py``).
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from saga_dist.cli.pace import Pace
from saga_dist.utils.durations import duration
from saga_dist.utils.printable import printable
from saga_dist.utils.stages import STAGES
from saga_dist.utils.terminal import say, terminal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from saga_dist.types import StepResult

SHOW_AFTER_S = 0.2
"""Seconds after which a line says what is waited for; what is quicker needs none."""
QUIET_S = 2.0
"""Seconds after which counted work is shown as lines."""
REMINDER_S = 30.0
"""Seconds after which a line says that the same thing is still waited for; doubled after each."""


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows what is waited for during the block, and the stages that the library enters in it (``utils/stages.py``).

    Args:
        what: the first stage as a present participle, e.g. ``reading runs/mine``.
    """
    console = terminal()
    with _spinner(console, what) if console.is_terminal else _lines(what) as show, _stages_shown_by(show):
        yield


@contextmanager
def counted(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a callback ``(done, total)`` that shows how much of the work in the block is done, and the time left.

    Args:
        what: the work as a present participle (``embedding``).
        unit: one part of it, singular (``image``).
    """
    console = terminal()
    if console.is_terminal:
        with _bar(console, transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
            task = progress.add_task(printable(what), total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
        return
    pace = Pace(unit, quiet_s=QUIET_S)

    def show(done: int, total: int) -> None:
        if pace.is_due(done, total):
            say(f"{printable(what)}: {_so_far(unit, done, total, pace)}")

    yield show


@contextmanager
def step_progress(title: str, num_steps: int) -> Iterator[Callable[[StepResult], None]]:
    """Yields a callback that shows each step: a live bar on a terminal, lines at growing intervals elsewhere.

    Args:
        title: text in front of the progress.
        num_steps: optimizer steps of the whole run.
    """
    from saga_dist.cli.console import step_line

    console = terminal()
    if not console.is_terminal:
        pace = Pace("step")

        def print_line(result: StepResult) -> None:
            if pace.is_due(result.step, num_steps):
                known = bool(pace.text(result.step, num_steps))
                so_far = _so_far("step", result.step, num_steps, pace)
                say(f"{printable(title)}: {so_far}; {step_line(result, with_seconds=not known)}")

        yield print_line
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    progress, numbers = _bar(console), Text()
    task = progress.add_task(printable(title), total=num_steps)

    def show(result: StepResult) -> None:
        progress.update(task, completed=result.step)
        numbers.plain = step_line(result)  # below the bar, where it may wrap

    with Live(Group(progress, numbers), console=console, redirect_stdout=sys.stdout.isatty()):
        yield show


def _bar(console: Console, **options: bool) -> Progress:
    """Returns a bar with spinner, name, count and time left; the options are those of rich's ``Progress``."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    described = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), described, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, **options)  # type: ignore[arg-type]


def _so_far(unit: str, done: int, total: int, pace: Pace) -> str:
    """Returns e.g. ``step 12/100, 3.1 s/step, about 4 min left``."""
    return ", ".join(filter(None, (f"{unit} {done:,}/{total:,}", pace.text(done, total))))


@contextmanager
def _spinner(console: Console, what: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that puts a stage beside the spinner."""
    from rich.live import Live
    from rich.spinner import Spinner
    from rich.text import Text

    spinner = Spinner("dots", text=Text(f"{printable(what)} …"))
    with Live(spinner, console=console, transient=True, refresh_per_second=10, redirect_stdout=sys.stdout.isatty()):
        yield lambda stage: spinner.update(text=Text(f"{printable(stage)} …"))


@contextmanager
def _lines(what: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that takes the next stage; a thread prints a stage that lasts."""
    stages: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    stages.put(what)
    printer = threading.Thread(target=_print_stages, args=(stages,), name="progress lines", daemon=True)
    printer.start()
    try:
        yield stages.put
    finally:
        stages.put(None)
        printer.join()


def _print_stages(stages: queue.SimpleQueue[str | None]) -> None:
    """Prints every stage that lasts longer than ``SHOW_AFTER_S``, and reminders of it at growing intervals.

    Args:
        stages: the stages as they begin; None ends the function.
    """
    stage = stages.get()
    since, gap = time.monotonic(), SHOW_AFTER_S
    while stage is not None:
        line = f"{printable(stage)} …"
        try:
            stage = stages.get(timeout=gap)
            since, gap = time.monotonic(), SHOW_AFTER_S
        except queue.Empty:
            first = gap == SHOW_AFTER_S
            say(line if first else f"{line} still, {duration(time.monotonic() - since)} so far")
            gap = REMINDER_S if first else 2 * gap


@contextmanager
def _stages_shown_by(show: Callable[[str], None]) -> Iterator[None]:
    """Hands the stages of the block to ``show`` instead of the log."""
    handler = _StageHandler(show)
    level, propagate = STAGES.level, STAGES.propagate
    STAGES.addHandler(handler)
    STAGES.setLevel(logging.INFO)
    STAGES.propagate = False
    try:
        yield
    finally:
        STAGES.removeHandler(handler)
        STAGES.setLevel(level)
        STAGES.propagate = propagate


class _StageHandler(logging.Handler):
    """Hands the text of each record to a function."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        """Hands the record's text on."""
        self._show(record.getMessage())
