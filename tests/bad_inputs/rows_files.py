"""Files and directories that are full, read-only, gone, of somebody else or not what they seem."""

from __future__ import annotations

from bad_inputs.row import BadInput

ROWS: list[BadInput] = []
