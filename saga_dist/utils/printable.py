"""Escapes untrusted text for a terminal, so that it cannot contain control sequences.

Names of files and classes, errors that quote them and cards of checkpoints are untrusted. A lone surrogate, which
Python uses for file names that are not UTF-8, could not be written to a terminal at all.
"""

from __future__ import annotations

import logging

LOG_FORMAT, LOG_TIME = "%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"
"""Formats of a log line and of its time."""


def printable(text: str) -> str:
    """Returns the text with every character that is not printable escaped (``\\x1b``, ``\\n``, ``\\ud800``)."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def printable_lines(text: str) -> str:
    """Returns the text with every character that is not printable escaped, except line breaks."""
    return "\n".join(printable(line) for line in text.split("\n"))


class PrintableFormatter(logging.Formatter):
    """Log formatter that escapes characters that are not printable; line breaks, as of a traceback, are kept."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as printable text."""
        return printable_lines(super().format(record))
