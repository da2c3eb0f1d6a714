"""Families of multimodal LLMs, found from a checkpoint's own configuration."""

from __future__ import annotations

from pathlib import Path

from saga_dist.errors import ModelError
from saga_dist.models.families.base import Family
from saga_dist.models.families.internvl.family import InternVLFamily
from saga_dist.models.families.qwen2_5_vl.family import Qwen25VLFamily
from saga_dist.models.families.qwen3_vl.family import Qwen3VLFamily
from saga_dist.models.model_files import ModelFiles
from saga_dist.models.supported import supported_family, supported_list

FAMILIES: dict[str, type[Family]] = {family.name: family for family in (Qwen3VLFamily, Qwen25VLFamily, InternVLFamily)}


def resolve_family(path: str | Path, revision: str = "main") -> Family:
    """Returns the family that a checkpoint's config.json names, bound to that checkpoint.

    Args:
        path: folder, or hub name.
        revision: hub revision.

    Raises:
        ModelError: no such checkpoint, an unreadable configuration, or a family that is not supported.
    """
    files = ModelFiles(path, revision)
    config = files.json("config.json")
    return FAMILIES[supported_family(config, where=files.name)](files, config)


def family_class(name: str, *, where: str) -> type[Family]:
    """Returns the family with this name; ``where`` names its source in the error.

    Raises:
        ModelError: there is none.
    """
    if name not in FAMILIES:
        raise ModelError(
            f"model family {name!r} is not supported",
            where=where,
            expected=supported_list(),
            fix="choose such a checkpoint",
        )
    return FAMILIES[name]
