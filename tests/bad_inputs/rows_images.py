"""Images as the encoder, its exports and the searches are given them."""

from __future__ import annotations

from bad_inputs.row import BadInput

ROWS: list[BadInput] = []
