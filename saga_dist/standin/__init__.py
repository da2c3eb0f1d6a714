"""The built-in stand-in: a procedural data set of drawn birds and a tiny Qwen3-VL that was trained to compare them."""

from __future__ import annotations

from pathlib import Path

from saga_dist.standin.checkpoint import checkpoint_path

DEMO_CONFIG = Path(__file__).parent / "demo.toml"
"""Configuration of the demo: the built-in birds and the stand-in."""

__all__ = ["DEMO_CONFIG", "checkpoint_path"]
