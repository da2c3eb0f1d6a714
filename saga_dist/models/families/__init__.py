"""Families of multimodal LLMs, found from a checkpoint's own configuration."""

from __future__ import annotations

from pathlib import Path

from saga_dist.errors import ModelError
from saga_dist.models.families.base import Family
from saga_dist.models.families.qwen3_vl import Qwen3VLFamily
from saga_dist.models.model_files import ModelFiles
from saga_dist.models.supported import SUPPORTED_FAMILIES

FAMILIES: dict[str, type[Family]] = {family.name: family for family in (Qwen3VLFamily,)}


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
    architectures = config.get("architectures") or []
    found = family_class(str(config.get("model_type")), where=files.name)
    if architectures and found.architecture not in architectures:
        raise ModelError(f"architecture {architectures[0]} is not supported", where=files.name, expected=_supported())
    return found(files, config)


def family_class(name: str, *, where: str) -> type[Family]:
    """Returns the family with this name; ``where`` names its source in the error.

    Raises:
        ModelError: there is none.
    """
    if name not in FAMILIES:
        raise ModelError(
            f"model family {name!r} is not supported",
            where=where,
            expected=_supported(),
            fix="choose such a checkpoint",
        )
    return FAMILIES[name]


def _supported() -> str:
    return ", ".join(f"{name} ({architecture})" for name, architecture in SUPPORTED_FAMILIES.items())
