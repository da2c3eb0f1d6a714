"""The reference of the configuration: every key with type, range, default, unit, the paper's value, when to change it.

Names, types, ranges, defaults and descriptions are those of the pydantic models; ``paper_values.py`` has the published
values, ``advice.toml`` the unit and when to change a key. ``saga-dist config`` and the page *Configuration* show it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from saga_dist.config import registries
from saga_dist.config.paper_values import NO_LIMIT, PAPER_VALUES
from saga_dist.config.run import RunConfig
from saga_dist.config.template import section_of, sections, toml_value
from saga_dist.errors import ConfigError
from saga_dist.utils.registry import Registry

ADVICE_FILE = Path(__file__).with_name("advice.toml")
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text"}
_EXTENSION_POINTS = {one.key: one for one in vars(registries).values() if isinstance(one, Registry)}


class ConfigKey(NamedTuple):
    """One key of the configuration."""

    key: str
    """Full name, ``section.key``."""
    values: str
    """Type and range, or the list of values."""
    default: str
    """Default as TOML; ``none`` for a key without one, ``empty`` for an empty text."""
    unit: str
    """Unit; empty for a key without one."""
    meaning: str
    """Description of the model."""
    paper: str
    """Published value as TOML; empty where the paper has none."""
    change: str
    """Reasons to change it."""


class ConfigSection(NamedTuple):
    """One section of the configuration."""

    name: str
    """Name as in TOML, e.g. ``data.birds``."""
    about: str
    """Subject of the section, one line."""
    keys: tuple[ConfigKey, ...]
    """Its keys, in the order of the model."""


@cache
def config_sections() -> tuple[ConfigSection, ...]:
    """Returns every section with all its keys, in the order of the configuration."""
    advice = tomllib.loads(ADVICE_FILE.read_text("utf-8"))
    found = []
    for name, model in sections(RunConfig):
        own: Any = advice
        for part in name.split("."):
            own = own.get(part, {})
        fields = {key: field for key, field in model.model_fields.items() if section_of(field) is None}
        keys = tuple(_key(f"{name}.{key}", field, own.get(key, {})) for key, field in fields.items())
        found.append(ConfigSection(name, (model.__doc__ or "").splitlines()[0], keys))
    return tuple(found)


def config_keys() -> Iterator[ConfigKey]:
    """Yields every key, in the order of the configuration."""
    for section in config_sections():
        yield from section.keys


def keys_called(name: str) -> list[ConfigKey]:
    """Returns the keys that a user means: the one of that name, those of that section, or those that contain it.

    Args:
        name: ``section.key``, ``section``, or a part of a name such as ``staleness``; ``=value`` after it is ignored.

    Raises:
        ConfigError: there is none; the message names close ones.
    """
    keys, name = list(config_keys()), name.partition("=")[0]
    for meant in (str.__eq__, lambda key, name: key.startswith(f"{name}."), str.__contains__):
        if found := [key for key in keys if meant(key.key, name)]:
            return found
    raise ConfigError(
        f"no configuration key is called {name!r}",
        where="config",
        expected="section.key, a section, or a part of a name",
        fix=_advice(name, [key.key for key in keys]),
    )


def _advice(name: str, keys: list[str]) -> str:
    """Returns what to type in place of a name that no key has."""
    if "/" in name:
        return f"names with a slash are metrics: `saga-dist metrics {name}`"
    ends = {key.rpartition(".")[2]: key for key in keys}
    close = difflib.get_close_matches(name, keys, n=3, cutoff=0.6)
    close = close or [ends[end] for end in difflib.get_close_matches(name, ends, n=3, cutoff=0.6)]
    return f"did you mean {' or '.join(close)}?" if close else "see `saga-dist config`"


def config_schema() -> dict[str, Any]:
    """Returns the JSON schema (draft 2020-12) of a configuration file, for editors and other checkers."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunConfig.model_json_schema()}


def _key(name: str, field: FieldInfo, advice: dict[str, str]) -> ConfigKey:
    paper = PAPER_VALUES.get(name)
    return ConfigKey(
        key=name,
        values=_values(name, field),
        default=_text(field.get_default(call_default_factory=True)),
        unit=advice.get("unit", ""),
        meaning=field.description or "",
        paper="" if paper is None else _text(paper),
        change=advice.get("change", ""),
    )


def _text(value: object) -> str:
    words = {None: "none", "": "empty", NO_LIMIT: NO_LIMIT}
    return words[value] if isinstance(value, str | None) and value in words else toml_value(value)


def _values(name: str, field: FieldInfo) -> str:
    """Returns the valid values of a key as text: the choices, or the type and its bounds."""
    kind = field.annotation
    if name in _EXTENSION_POINTS:
        return f"{', '.join(_EXTENSION_POINTS[name].builtin)}, or package.module:object"
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"list of {', '.join(map(str, get_args(get_args(kind)[0])))}"
    if get_origin(kind) is dict:
        return "table of names and values"
    (plain,) = {*get_args(kind), kind} & _TYPES.keys()
    bounds = [
        f"{sign} {getattr(constraint, bound):g}"
        for constraint in field.metadata
        for bound, sign in _BOUNDS.items()
        if hasattr(constraint, bound)
    ]
    return " ".join([_TYPES[plain], ", ".join(bounds)]).strip()
