"""Stages: the library says what it is about to do, and the command line shows it for as long as it takes.

A stage is a record of the logger ``saga_dist.stages``. Training commands log it; the others show it beside a spinner
or as a line (``cli/progress.py``). In a program of the user's own it is an ordinary INFO record.
"""

from __future__ import annotations

import logging

STAGES = logging.getLogger("saga_dist.stages")
"""Logger of the stages."""


def stage(what: str, *arguments: object) -> None:
    """Says what comes next and may take seconds or more.

    Args:
        what: the stage as a present participle, e.g. ``loading the model %s``; a ``%`` format.
        arguments: values of the format.
    """
    STAGES.info(what, *arguments)
