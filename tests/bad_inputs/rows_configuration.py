"""Mistakes in a configuration: found by ``--dry-run``, before anything heavy is loaded."""

from __future__ import annotations

from bad_inputs.row import BadInput

ROWS = [
    BadInput(
        "an unknown key",
        "unknown key",
        "train run.toml run.stepps=3 --dry-run",
        ("run.stepps",),
        lambda workspace: workspace.write_config(),
    ),
]
