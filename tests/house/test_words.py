"""Checks the words of the package: keys are described, docstrings are statements, class names stand in one module."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from saga_dist.config import RunConfig, Section

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "saga_dist"
TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8"), filename=str(path))
    for path in sorted(PACKAGE.rglob("*.py"))
}
FRAGMENT_WORDS = {
    *("of", "that", "what", "where", "whether", "whoever", "who", "which", "nobody", "those", "likewise", "how"),
    *("when", "as", "by", "with", "without", "from", "for", "in", "on", "also", "none", "same"),
}
"""First words of texts that are only a part of a sentence."""


def starts_as_fragment(text: str) -> bool:
    """Returns True when the first word of a text is one of ``FRAGMENT_WORDS``; In-flight is another word."""
    first = text.split()[0] if text.strip() else ""
    return first.strip("\"'`.,:;()").lower() in FRAGMENT_WORDS


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields line and text of every docstring: of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def configuration_keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields name, as ``section.key``, and definition of every key of a section and of the sections in it."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from configuration_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


KEYS = dict(configuration_keys(RunConfig))


@pytest.mark.parametrize("key", KEYS)
def test_every_configuration_key_is_described(key: str) -> None:
    description = KEYS[key].description or ""
    assert description.strip(), "add description= to its Field: meaning, unit, range"
    assert not starts_as_fragment(description), description


def test_keys_of_nested_sections_are_among_those_checked() -> None:
    assert {"run.seed", "rollout.temperature", "data.birds.seed"} <= KEYS.keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Of the run.", True),
        ("whether it runs", True),
        ("None: it has ended.", True),
        ("``None`` for none.", True),
        ("", False),
        ("Name of the run.", False),
        ("In-flight cap of one worker.", False),
        ("Nonetheless a statement.", False),
    ],
)
def test_a_fragment_is_known_by_its_first_word(text: str, expected: bool) -> None:
    assert starts_as_fragment(text) is expected


def test_no_docstring_starts_as_a_fragment() -> None:
    fragments = [
        f"{path}:{line}: {' '.join(text.split())[:80]}"
        for path, tree in TREES.items()
        for line, text in docstrings(tree)
        if starts_as_fragment(text)
    ]
    assert fragments == []


def test_a_class_name_stands_in_one_module() -> None:
    """Protocols are in ``protocols.py``; the class that implements a protocol may have its name."""
    modules_of: defaultdict[str, set[str]] = defaultdict(set)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and path != "protocols.py":
                modules_of[node.name].add(path)
    repeated = {name: sorted(paths) for name, paths in modules_of.items() if len(paths) > 1}
    assert repeated == {}
