"""Families of multimodal LLMs: built-in ones are found by the checkpoint's config.json, others by import path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saga_dist.config.method import AUTO
from saga_dist.config.registries import MODEL_FAMILIES
from saga_dist.errors import ConfigError, ModelError
from saga_dist.models.families.base import Family, VisionTower
from saga_dist.models.model_files import ModelFiles
from saga_dist.models.supported import supported_family, supported_list
from saga_dist.utils.registry import import_object, is_import_path

if TYPE_CHECKING:
    import torch

_FAMILIES = "saga_dist.models.families"
SAVED_TOWERS = {
    "qwen3_vl": f"{_FAMILIES}.qwen3_vl.plain_tower:PlainQwen3VLTower",
    "qwen2_5_vl": f"{_FAMILIES}.qwen2_5_vl.tower:Qwen25VLTower",
    "internvl": f"{_FAMILIES}.internvl.tower:InternVLTower",
}
"""Tower of each built-in family for saved encoders, whose module imports no language model of this package."""


def resolve_family(path: str | Path, revision: str = "main", *, family: str = AUTO) -> Family:
    """Returns the family of a checkpoint, bound to that checkpoint.

    Args:
        path: folder, or hub name.
        revision: hub revision.
        family: built-in name or import path of the family; ``auto`` for the built-in family that config.json names.

    Raises:
        ModelError: the checkpoint does not exist, its config.json cannot be read, or its family is not supported.
        ConfigError: there is no such family, or a user's family raised.
    """
    files = ModelFiles(path, revision)
    config = files.json("config.json")
    name = supported_family(config, where=files.name) if family == AUTO else family
    family_class = load_family_class(name)
    with MODEL_FAMILIES.calling(name):
        return family_class(files, config)


def load_family_class(name: str) -> type[Family]:
    """Returns the class of a family.

    Args:
        name: built-in name, or import path.

    Raises:
        ConfigError: there is no such class, or it is no complete subclass of ``Family``.
    """
    found = MODEL_FAMILIES.load(name)
    if not (isinstance(found, type) and issubclass(found, Family)):
        raise ConfigError(
            f"{name!r} is no family",
            where=MODEL_FAMILIES.key,
            expected="a subclass of saga_dist.models.families.base.Family",
        )
    if missing := sorted(found.__abstractmethods__):
        raise ConfigError(f"{name!r} does not define {', '.join(missing)}", where=MODEL_FAMILIES.key, fix="add them")
    return found


def rebuild_saved_tower(
    name: str, named: str, description: dict[str, Any], folder: Path, *, dtype: torch.dtype, where: str
) -> VisionTower:
    """Returns the tower of a saved encoder, with uninitialised weights.

    A folder of weights must not determine which code runs. So an import path in the folder is never followed; the
    caller must give it.

    Args:
        name: family as saved with the encoder.
        named: built-in name or import path given by the caller, used in place of ``name``; empty for none.
        description: result of ``VisionTower.describe``.
        folder: folder with the preprocessing files.
        dtype: dtype of the weights.
        where: source of ``name``, for the error.

    Raises:
        ModelError: the saved family is not built in, and ``named`` is empty.
        ConfigError: the named family cannot be imported.
    """
    if named:
        return load_family_class(named).rebuild_tower(description, folder, dtype=dtype)
    if name in SAVED_TOWERS:
        tower_class = import_object(SAVED_TOWERS[name], key=where)
        tower: VisionTower = tower_class.rebuild(description, folder, dtype=dtype)
        return tower
    if is_import_path(name):
        raise ModelError(
            f"the encoder needs the model family {name!r}, which is not built in",
            where=where,
            fix=f'if you trust that code, name it: saga_dist.load(path, family="{name}"), or --family {name}',
        )
    raise ModelError(
        f"model family {name!r} is not supported",
        where=where,
        expected=supported_list(),
        fix="choose such a checkpoint",
    )
