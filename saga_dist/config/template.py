"""Writes a configuration as commented TOML: every key with its description, those that are not set commented out."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tomli_w
from pydantic.fields import FieldInfo

from saga_dist.config.run import RunConfig
from saga_dist.config.section import Section
from saga_dist.utils.printable import printable

WIDTH = 100
"""Largest number of columns of a comment."""
OMITTED = ("data.birds",)
"""Sections that concern the built-in data set only."""


def commented_toml(values: Mapping[str, Mapping[str, Any]], *, heading: Sequence[str]) -> str:
    """Returns the TOML text of a configuration with all keys of all sections.

    A key of ``values`` is set; every other one is a comment with its default. Above each stands its description.

    Args:
        values: section to key to value, as in a TOML file.
        heading: lines of the comment at the top of the file; characters that are not printable are escaped.
    """
    blocks = ["\n".join(_comment(printable(line)) for line in heading)]
    for name, section in sections(RunConfig):
        if name in OMITTED:
            continue
        given: Any = values
        for part in name.split("."):
            given = given.get(part, {})
        blocks.append(f"# {(section.__doc__ or '').splitlines()[0]}\n[{name}]")
        blocks += [_key(key, field, given) for key, field in section.model_fields.items() if not section_of(field)]
    return "\n\n".join(blocks) + "\n"


def sections(model: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Yields name and class of every section in the order of the configuration.

    Args:
        model: the root, or a section with sections of its own.
        prefix: name of ``model`` with a dot at its end; empty for the root.
    """
    for key, field in model.model_fields.items():
        section = section_of(field)
        if section is not None:
            yield prefix + key, section
            yield from sections(section, f"{prefix}{key}.")


def section_of(field: FieldInfo) -> type[Section] | None:
    """Returns the class of the section that a field is; None for a field that is a key."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _key(key: str, field: FieldInfo, given: Mapping[str, Any]) -> str:
    """Returns the lines of one key: its description and its value, or its default as a comment."""
    description = "\n".join(map(_comment, textwrap.wrap(field.description or "", WIDTH - 2, break_on_hyphens=False)))
    value = given.get(key, field.get_default(call_default_factory=True))
    line = f"{key} = {toml_value(value)}" if value is not None else f"{key} ="
    return f"{description}\n{line if key in given else f'# {line}'}"


def _comment(line: str) -> str:
    return f"# {line}".rstrip()


def toml_value(value: Any) -> str:
    """Returns a value as TOML on one line; a table becomes an inline table."""
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{json.dumps(str(key))} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")
