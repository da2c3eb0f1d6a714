"""docs/paper.md is true: what it names exists, and each equation has one docstring that names it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from saga_dist.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "paper.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
    for line in PAGE.split("## Deviations")[0].splitlines()
    if line.startswith("|") and not line.startswith("|--")
]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::([\w.]+)`", PAGE)))
SOURCES = [f"Eq. {number}" for number in range(1, 8)] + ["Algorithm 1", "Appendix B"]
ABLATIONS = [row for row in ROWS if len(row) == 2 and row[0] != "ablation"]


@cache
def definitions(path: str) -> dict[str, ast.AST]:
    """Qualified name to node of every class and function in a file, and of the file itself as ''."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    found: dict[str, ast.AST] = {"": tree}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found[prefix + child.name] = child
                walk(child, f"{prefix}{child.name}.")

    walk(tree, "")
    return found


def docstrings() -> dict[tuple[str, str], str]:
    """(file, qualified name) to docstring, over the whole package."""
    paths = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "saga_dist").rglob("*.py"))]
    return {
        (path, name): ast.get_docstring(node) or ""  # type: ignore[arg-type]
        for path in paths
        for name, node in definitions(path).items()
    }


DOCSTRINGS = docstrings()


def code_of(source: str) -> tuple[str, str]:
    """What the page gives as the code of an equation."""
    (row,) = [row for row in ROWS if row[0].startswith(source + ",")]
    ((path, name),) = re.findall(r"`([\w/]+\.py)::([\w.]+)`", row[1])
    return path, name


@pytest.mark.parametrize("source", SOURCES)
def test_each_equation_is_named_in_one_docstring_the_one_on_the_page(source: str) -> None:
    naming = [place for place, text in DOCSTRINGS.items() if re.search(rf"{re.escape(source)}(?!\d)", text)]
    assert naming == [code_of(source)]
    assert f"Source: SAGA {source}" in DOCSTRINGS[naming[0]]


def test_no_docstring_names_an_equation_that_is_not_on_the_page() -> None:
    numbers = {number for text in DOCSTRINGS.values() for number in re.findall(r"SAGA Eq\. (\d+)", text)}
    assert numbers == {str(number) for number in range(1, 8)}


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda part: part)
def test_what_the_page_names_exists(path: str, name: str) -> None:
    assert name in definitions(path)


def test_every_row_has_code_and_a_test() -> None:
    rows = [row for row in ROWS if len(row) == 4 and row[0] != "paper"]
    assert len(rows) > 20
    for what, code, tests, deviation in rows:
        assert re.fullmatch(r"`saga_dist/[\w/]+\.py::[\w.]+`(, `saga_dist/[\w/]+\.py::[\w.]+`)*", code), what
        assert re.fullmatch(r"`tests/[\w/]+\.py::test_\w+`(, `tests/[\w/]+\.py::test_\w+`)*", tests), what
        assert deviation, what


@pytest.mark.parametrize("row", ABLATIONS, ids=lambda row: row[0])
def test_ablations_are_valid_settings(row: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    overrides = row[1].strip("`").split()
    assert load_config("configs/cub.toml", overrides) != load_config("configs/cub.toml")
