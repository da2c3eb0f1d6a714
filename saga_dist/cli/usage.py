"""Mistakes in the arguments themselves: an unknown command or option, a missing or a wrong value."""

from __future__ import annotations

from typing import Any

import typer

UsageError: Any = typer.BadParameter.__base__
"""Class of all errors in the arguments. Typer brings its own click since version 0.26 and does not export it."""


def usage_text(error: Any) -> str:
    """Returns an error in the arguments as one line: the command, what is wrong, and where to read on.

    A command group that was called without a command has no error line; the text is then its help.

    Args:
        error: a ``UsageError``.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error.format_message())
    command = error.ctx.command_path if error.ctx is not None else "saga-dist"
    # Typer's own checks of values say "Value error," and end with a full stop; click's do neither.
    what = " ".join(error.format_message().replace("Value error, ", "").replace(". Did you", "; did you").split())
    return f"error: {command}: {what[:1].lower()}{what[1:].rstrip('.')}; see `{command} --help`"
