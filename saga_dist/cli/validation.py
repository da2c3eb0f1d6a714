"""Validation of a run by the commands that start one; imports nothing heavy."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saga_dist.config import RunConfig

log = logging.getLogger(__name__)


def require_valid(config: RunConfig, directory: Path) -> None:
    """Validates a run before anything heavy is loaded, says so while it lasts, and logs its warnings.

    Args:
        config: the whole configuration.
        directory: the run directory, which need not exist.

    Raises:
        UserError: the run is not valid.
    """
    from saga_dist.cli.progress import waiting
    from saga_dist.runtime.validation import validate_run

    with waiting("validating the run"):
        warnings = validate_run(config, directory)
    for warning in warnings:
        log.warning("%s", warning)
