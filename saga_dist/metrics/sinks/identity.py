"""Identity of a run at a logging service, and the text of its errors."""

from __future__ import annotations

import hashlib
from pathlib import Path

from saga_dist.config import RunConfig


def run_identity(run_dir: Path, config: RunConfig) -> str:
    """Returns an id that is equal for every attempt at a run directory with a configuration: 16 hexadecimal digits."""
    return hashlib.sha256(f"{run_dir.resolve()} {config.digest()}".encode()).hexdigest()[:16]


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, at most 200 characters."""
    return (str(error).splitlines() or [""])[0][:200]
