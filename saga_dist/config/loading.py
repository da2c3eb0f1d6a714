"""Loads configurations from TOML, overrides and saved JSON; each error is one line that names the file and the key."""

from __future__ import annotations

import copy
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from saga_dist.config.find import find_config
from saga_dist.config.run import RunConfig
from saga_dist.config.section import Section
from saga_dist.errors import CheckpointError, ConfigError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the configuration in a TOML file with overrides applied.

    Args:
        path: the TOML file, or the name of a shipped one (``find_config``).
        overrides: strings ``section.key=value``, applied in order; the value is TOML, and a bare word is a string.

    Raises:
        ConfigError: the file cannot be read, or a key, type or value is wrong.
    """
    file = find_config(path)
    tree = load_tree(file, overrides)
    if "variant" in tree:
        raise ConfigError(
            "a table of variants",
            where=str(file),
            expected="the configuration of one run",
            fix=f"`saga-dist sweep {path}` runs a table",
        )
    return parse_config(tree, where=str(file))


def resolve_config(source: object, overrides: Sequence[str] = ()) -> RunConfig:
    """Returns the configuration that any of its forms means, with overrides applied.

    Args:
        source: path of a TOML file or name of a shipped one; its sections as a mapping of mappings; or a configuration.
        overrides: as for ``load_config``.

    Raises:
        ConfigError: as for ``load_config``; or ``source`` is of another type.
    """
    if isinstance(source, str | Path):
        return load_config(source, overrides)
    if not isinstance(source, RunConfig | Mapping):
        kind = type(source).__name__
        raise ConfigError(f"a configuration of type {kind}", expected="a path, a mapping of sections or a RunConfig")
    tree = source.model_dump(mode="json") if isinstance(source, RunConfig) else copy.deepcopy(dict(source))
    for override in override_list(overrides):
        _apply_override(tree, override)
    return parse_config(tree, where="configuration")


def load_tree(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the sections, keys and values of a TOML file with overrides applied, not validated.

    Args:
        path: as for ``load_config``.
        overrides: as for ``load_config``.

    Raises:
        ConfigError: the file cannot be read or is not TOML, or an override has another form.
    """
    path = find_config(path)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the file ({error.strerror})", where=str(path), fix="check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError("the file is not UTF-8 text", where=str(path), expected="TOML") from error
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"cannot read the file ({error})", where=repr(str(path)), fix="check the path") from error
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML ({error})", where=str(path)) from error
    for override in override_list(overrides):
        _apply_override(tree, override)
    return tree


def load_run_config(path: Path) -> RunConfig:
    """Returns the resolved configuration of a run directory.

    Args:
        path: run directory with ``config.json``.

    Raises:
        ConfigError: ``config.json`` is missing, or a key, type or value in it is wrong.
        CheckpointError: ``config.json`` is not valid JSON.
    """
    saved = path / "config.json"
    try:
        tree = json.loads(saved.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=str(saved), expected="a run directory") from error
    except ValueError as error:
        raise CheckpointError(
            "not valid JSON", where=str(saved), fix="the `train` command of this run writes it again"
        ) from error
    return parse_config(tree, where=str(saved))


def parse_config(tree: dict[str, Any], *, where: str) -> RunConfig:
    """Returns the validated configuration of a nested dict.

    Args:
        tree: section name to keys and values.
        where: name of the source, for error messages.

    Raises:
        ConfigError: a key, type or value is wrong.
    """
    try:
        return RunConfig.model_validate(_tuples(tree))
    except ValidationError as error:
        raise ConfigError(_first_problem(error), where=where) from error


def override_list(overrides: Sequence[str]) -> list[str]:
    """Returns overrides as a list.

    Raises:
        ConfigError: they are one string, whose letters would be taken for overrides.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"overrides = {overrides!r}", expected=f"a list of strings: [{overrides!r}]")
    return list(overrides)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    path = key.strip().split(".")
    if not separator or len(path) < 2 or not all(path):
        raise ConfigError(f"override {override!r}", where="command line", expected="section.key=value")
    try:
        value = tomllib.loads(f"value = {text.strip()}")
    except tomllib.TOMLDecodeError:
        value = {"value": text.strip()}  # a bare word is a string: model.path=standin
    if len(value) != 1:
        raise ConfigError(f"override {override!r}", where="command line", expected="one section.key=value")
    node = tree
    for name in path[:-1]:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}", where="command line", expected="a key below a section")
    node[path[-1]] = value["value"]


def _tuples(value: Any) -> Any:
    """Returns the value with every list replaced by a tuple, because the strict models accept no lists."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(part if part.isprintable() else repr(part) for part in location) or "configuration"
    message = first["msg"].removeprefix("Value error, ")
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            close = difflib.get_close_matches(location[-1], _names_at(location[:-1]), n=1, cutoff=0.5)
            hint = f"; did you mean {'.'.join([*location[:-1], close[0]])}?" if close else "; remove it"
            return f"unknown key {key}{hint}{more}"
        case "missing":
            return f"{key} is missing; add it{more}"
        case "value_error":
            return f"{key}: {message}{more}" if location else f"{message}{more}"
        case _:
            return f"{key} = {first['input']!r}: {message[0].lower() + message[1:]}{more}"


def _names_at(location: Sequence[str]) -> list[str]:
    model: Any = RunConfig
    for name in location:
        model = model.model_fields[name].annotation if name in model.model_fields else Section
    return list(getattr(model, "model_fields", {}))
