"""Clusters, addresses and orders that cannot be used, as far as that is known without Ray."""

from __future__ import annotations

from bad_inputs.row import BadInput

ROWS: list[BadInput] = []
