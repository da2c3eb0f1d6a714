"""Which model families there are, by name alone: importing this costs nothing."""

from __future__ import annotations

SUPPORTED_FAMILIES: dict[str, str] = {"qwen3_vl": "Qwen3VLForConditionalGeneration"}
"""``model_type`` of a checkpoint's config.json to its architecture."""
