"""Completions of the MLLM as the reward reads them."""

from __future__ import annotations

from bad_inputs.row import BadInput

ROWS: list[BadInput] = []
