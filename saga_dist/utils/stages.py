"""Stages: the library says what it is about to do, and the command line shows it for as long as it takes.

A stage is a record of the logger ``saga_dist.stages``. Training commands log it; the others show it beside a spinner
or as a line (``cli/progress.py``). In a program of the user's own it is an ordinary INFO record.

A stage is work of this process; what something else does for it is announced (``utils/waiting.py``). Where a log is all
there is, ``waiting.lasting`` says a stage again while it lasts.
"""

from __future__ import annotations

import logging

STAGES = logging.getLogger("saga_dist.stages")
"""Logger of the stages."""
_entered: list[str] = [""]
"""Text of the stage that was entered last."""


def stage(what: str, *arguments: object) -> None:
    """Says what comes next and may take seconds or more.

    Args:
        what: the stage as a present participle, e.g. ``loading the model %s``; a ``%`` format.
        arguments: values of the format.
    """
    _entered[0] = what % arguments if arguments else what
    STAGES.info(what, *arguments)


def logged_stage() -> str:
    """Returns the stage that was entered last; empty while a command shows the stages beside a spinner or as lines."""
    return _entered[0] if STAGES.propagate else ""
