"""Finds the built-in model family of a checkpoint from its config.json; imports neither torch nor a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_dist.errors import ModelError

SUPPORTED_FAMILIES: dict[str, str] = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
}
"""Architecture of each family, by ``model_type`` of config.json, which is also the family's name."""

INTERNVL_TEXT = "qwen3"
"""``text_config.model_type`` of dense InternVL3.5; InternVL3 has qwen2 or llama, the largest models have experts."""

ADVICE: dict[str, str] = {
    "qwen3_vl_moe": "choose a dense Qwen3-VL (2B, 4B, 8B or 32B)",
    "qwen2_vl": "choose a Qwen2.5-VL or a Qwen3-VL",
    "internvl_chat": "choose the same checkpoint in Hugging Face format, its name ends in -HF",
}
"""Advice in the error for unsupported checkpoints that resemble supported ones, by ``model_type``."""


def supported_family(config: Mapping[str, Any], *, where: str) -> str:
    """Returns the name of a checkpoint's built-in family (a key of ``MODEL_FAMILIES``).

    Args:
        config: content of the checkpoint's config.json.
        where: folder or hub name of the checkpoint, for the error.

    Raises:
        ModelError: the checkpoint belongs to no supported family.
    """
    name, architectures = str(config.get("model_type")), config.get("architectures") or []
    if name not in SUPPORTED_FAMILIES:
        raise ModelError(
            f"model family {name!r} is not supported",
            where=where,
            expected=supported_list(),
            fix=ADVICE.get(name, "choose such a checkpoint"),
        )
    if architectures and SUPPORTED_FAMILIES[name] not in architectures:
        raise ModelError(f"architecture {architectures[0]} is not supported", where=where, expected=supported_list())
    text = (config.get("text_config") or {}).get("model_type")
    if name == "internvl" and text != INTERNVL_TEXT:
        raise ModelError(
            f"InternVL with language model {text!r} is not supported",
            where=where,
            expected=f"text_config.model_type = {INTERNVL_TEXT}",
            fix="choose a dense InternVL3.5 in Hugging Face format",
        )
    return name


def supported_list() -> str:
    """Returns all families with their architectures, in one line for error messages."""
    return ", ".join(f"{name} ({architecture})" for name, architecture in SUPPORTED_FAMILIES.items())
