"""Families of multimodal LLMs: built-in ones are found by a checkpoint's configuration, others by their import path."""

from __future__ import annotations

from pathlib import Path

from saga_dist.config.method import AUTO
from saga_dist.config.registries import MODEL_FAMILIES
from saga_dist.errors import ConfigError, ModelError
from saga_dist.models.families.base import Family
from saga_dist.models.model_files import ModelFiles
from saga_dist.models.supported import supported_family, supported_list
from saga_dist.utils.registry import is_import_path


def resolve_family(path: str | Path, revision: str = "main", *, family: str = AUTO) -> Family:
    """Returns the family of a checkpoint, bound to that checkpoint.

    Args:
        path: folder, or hub name.
        revision: hub revision.
        family: built-in name or import path of the family; ``auto``: the built-in one that config.json names.

    Raises:
        ModelError: no such checkpoint, an unreadable configuration, or a family that is not supported.
        ConfigError: no such family, or a family of the user's own raises.
    """
    files = ModelFiles(path, revision)
    config = files.json("config.json")
    name = supported_family(config, where=files.name) if family == AUTO else family
    family_class = load_family_class(name)
    with MODEL_FAMILIES.calling(name):
        return family_class(files, config)


def load_family_class(name: str) -> type[Family]:
    """Returns the family with this built-in name or import path.

    Raises:
        ConfigError: there is none, or it is no whole subclass of ``Family``.
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


def saved_family_class(name: str, named: str, *, where: str) -> type[Family]:
    """Returns the family of a saved encoder.

    A folder of weights must not decide which code runs: an import path in it is followed only when the caller names it.

    Args:
        name: the family that the saved encoder names.
        named: the family that the caller names, instead; empty when it names none.
        where: source of ``name``, for the error.

    Raises:
        ModelError: the saved family is not built in, and the caller names none.
        ConfigError: the named family cannot be imported.
    """
    if named:
        return load_family_class(named)
    if name in MODEL_FAMILIES.builtin:
        return load_family_class(name)
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
