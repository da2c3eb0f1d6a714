"""The version of the code that made a file."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from saga_dist import __version__

_PACKAGE = Path(__file__).resolve().parents[1]


@cache
def code_version() -> str:
    """Returns the version of the package; in a git checkout with the commit, as in ``0.2.0+g0123456789ab``."""
    root = _PACKAGE.parent
    if not (root / ".git").exists():  # installed: a repository further up is somebody else's
        return __version__
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+g{done.stdout.strip()}"
