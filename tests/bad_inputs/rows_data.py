"""Data sets that are missing, damaged, too small or laid out in another way."""

from __future__ import annotations

from bad_inputs.row import BadInput

ROWS: list[BadInput] = []
