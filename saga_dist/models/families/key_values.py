"""Type of the keys and values that prefill, packed forward passes and decode steps exchange."""

from __future__ import annotations

import torch

KeyValues = tuple[tuple[torch.Tensor, torch.Tensor], ...]
"""Keys (after rotation) and values of every decoder layer, [B, key heads, S, head width] each."""
