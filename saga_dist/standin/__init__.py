"""The built-in stand-in: a procedural world of birds and a tiny Qwen3-VL that has learnt to compare them."""

from __future__ import annotations

from saga_dist.standin.checkpoint import checkpoint_path

__all__ = ["checkpoint_path"]
