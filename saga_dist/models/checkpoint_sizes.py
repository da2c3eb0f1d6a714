"""Sizes of a checkpoint that a run must agree with, from its config.json alone; imports neither torch nor a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saga_dist.errors import ModelError

DEFAULT_SIDES = {"qwen3_vl": (16, 2), "qwen2_5_vl": (14, 2), "internvl": (14, 2)}
"""Patch size in pixels and merge size of each family, where config.json leaves them to the defaults of transformers."""


@dataclass(frozen=True, slots=True)
class CheckpointSizes:
    """Sizes of a checkpoint; None for one that config.json does not state."""

    num_layers: int | None
    """Number of decoder layers of the language model."""
    context: int | None
    """Longest sequence of the language model in tokens, without any scaling of its rotary positions."""
    pixels_per_token: int | None
    """Side of the square of pixels that one encoder token covers: patch size times merge size."""
    num_blocks: int | None
    """Number of transformer blocks of the vision tower."""


UNKNOWN_SIZES = CheckpointSizes(num_layers=None, context=None, pixels_per_token=None, num_blocks=None)
"""Sizes of a checkpoint of which nothing is known."""


def checkpoint_sizes(config: Mapping[str, Any], family: str) -> CheckpointSizes:
    """Returns the sizes of a checkpoint of a built-in family.

    Args:
        config: content of config.json.
        family: name of the family, a key of ``SUPPORTED_FAMILIES``.
    """
    if not config:
        return UNKNOWN_SIZES
    vision = _section(config, "vision_config")
    text = _section(config, "text_config") or config  # Qwen2.5-VL's released files have no section of the text model
    scaled = any(_is_scaled(text.get(key)) for key in ("rope_scaling", "rope_parameters"))
    return CheckpointSizes(
        num_layers=_whole(text.get("num_hidden_layers")),
        context=None if scaled else _whole(text.get("max_position_embeddings")),
        pixels_per_token=_pixels_per_token(config, vision, family),
        num_blocks=_whole(vision.get("depth", vision.get("num_hidden_layers"))),
    )


def check_kl_layer(kl_layer: int, num_layers: int, *, where: str) -> None:
    """Checks that ``objective.kl_layer`` is a layer of the language model.

    Args:
        kl_layer: the configured layer, counted from 0.
        num_layers: number of decoder layers.
        where: folder or hub name of the checkpoint, for the error.

    Raises:
        ModelError: there is no such layer.
    """
    if kl_layer >= num_layers:
        raise ModelError(
            f"objective.kl_layer = {kl_layer}",
            where=where,
            expected=f"a layer below {num_layers}",
            fix=f"set objective.kl_layer = {3 * num_layers // 4}, about 3/4 of the depth",
        )


def _pixels_per_token(config: Mapping[str, Any], vision: Mapping[str, Any], family: str) -> int | None:
    default_side, default_merge = DEFAULT_SIDES[family]
    patch = vision.get("patch_size", default_side)
    side = _whole(patch[0] if isinstance(patch, list) and patch else patch)
    if family == "internvl":
        ratio = config.get("downsample_ratio", 1 / default_merge)
        merge = round(1 / ratio) if isinstance(ratio, float | int) and ratio > 0 else None
    else:
        merge = _whole(vision.get("spatial_merge_size", default_merge))
    return side * merge if side and merge else None


def _is_scaled(rope: object) -> bool:
    """Returns True when rotary positions are scaled, which makes the context longer than the stated one."""
    if not isinstance(rope, Mapping):
        return False
    return rope.get("rope_type", rope.get("type", "default")) not in ("default", "mrope")


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
