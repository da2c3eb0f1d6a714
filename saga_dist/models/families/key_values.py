"""The key/value cache as plain tensors: what prompts, packed groups and decode steps hand to each other."""

from __future__ import annotations

import torch

KeyValues = tuple[tuple[torch.Tensor, torch.Tensor], ...]
"""Keys (after rotation) and values of every decoder layer: [B, H_kv, S, head width] each."""
