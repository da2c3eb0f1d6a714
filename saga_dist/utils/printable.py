"""Text for a terminal: what others named or wrote must not command it.

Names of files and classes, errors that quote them and cards of checkpoints are untrusted. A lone surrogate, as a file
name that is no UTF-8 has, could not even be written.
"""

from __future__ import annotations

import logging

LOG_FORMAT, LOG_TIME = "%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"


def printable(text: str) -> str:
    """Returns the text with everything that is not printable written out (``\\x1b``, ``\\n``, ``\\ud800``)."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def printable_lines(text: str) -> str:
    """Returns the text with every line printable and the line breaks kept."""
    return "\n".join(printable(line) for line in text.split("\n"))


class PrintableFormatter(logging.Formatter):
    """A log format whose lines are printable; a traceback keeps its line breaks."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as text."""
        return printable_lines(super().format(record))


def log_to_stderr() -> None:
    """Sends log records to standard error; the first call decides, as with ``logging.basicConfig``."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(LOG_FORMAT, LOG_TIME))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
