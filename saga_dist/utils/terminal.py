"""The one console of standard error, which log lines, spinners and progress bars share.

Two writers on one terminal tear each other's lines. While a bar is shown, rich prints what goes through the bar's own
console above it; so the log goes through the same console. Results of a command go to standard output.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

from saga_dist.utils.printable import LOG_FORMAT, LOG_TIME, PrintableFormatter

if TYPE_CHECKING:
    from rich.console import Console


@cache
def terminal() -> Console:
    """Returns the console of standard error; text is printed as it is, without markup."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def say(line: str) -> None:
    """Prints a line to standard error, above a bar or spinner that is shown.

    On a terminal rich wraps it, because a bar is drawn below it and rich must know how many lines there are. Into a
    pipe or a file it stays one line.
    """
    terminal().print(line, soft_wrap=not terminal().is_terminal)


class TerminalHandler(logging.Handler):
    """Log handler that prints through ``terminal()``, so that a line never falls into a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the record."""
        try:
            say(self.format(record))
        except (OSError, ValueError):  # standard error is closed, which must not end the program
            self.handleError(record)


def log_to_terminal() -> None:
    """Sends log records from WARNING up to the terminal; only the first call has an effect (``basicConfig``)."""
    handler = TerminalHandler()
    handler.setFormatter(PrintableFormatter(LOG_FORMAT, LOG_TIME))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
