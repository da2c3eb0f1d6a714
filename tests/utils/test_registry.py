"""The registry of an extension point: names, import paths, and what goes wrong with either, one line each."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saga_dist.errors import ConfigError, DataError
from saga_dist.utils.registry import Registry, import_object, is_import_path

JOINERS: Registry[Callable[[str], str]] = Registry("joiner", "text.joiner", {"comma": "json:dumps"})


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a module beside the tests' current directory and returns its name; it is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("package:thing", True),
        ("package.module:thing", True),
        ("package.module:Class.method", True),
        ("_p._m:_t1", True),
        ("package.module", False),
        (":thing", False),
        ("package:", False),
        ("package.:thing", False),
        ("package:thing.", False),
        ("package:two:three", False),
        ("a path:thing", False),
        ("package/module:thing", False),
        ("1package:thing", False),
        ("package:thing\n", False),
        ("", False),
    ],
)
def test_the_form_of_an_import_path(name: str, expected: bool) -> None:
    assert is_import_path(name) is expected


def test_a_name_stands_for_its_object_and_a_path_for_itself() -> None:
    import json

    assert JOINERS.load("comma") is json.dumps
    assert JOINERS.load("json:loads") is json.loads
    assert JOINERS.load("pathlib:Path.cwd") == Path.cwd


def test_an_unknown_name_lists_the_known_ones() -> None:
    for act in (JOINERS.check, JOINERS.load):
        with pytest.raises(ConfigError) as caught:
            act("coma")
        expected = "text.joiner: unknown joiner 'coma'; expected one of comma, or package.module:object"
        assert str(caught.value) == expected


def test_checking_a_path_imports_nothing(write_module: Callable[..., str]) -> None:
    name = write_module("never_imported", "raise SystemExit")
    JOINERS.check(f"{name}:thing")
    assert name not in sys.modules


def test_a_module_of_the_current_directory_is_found(write_module: Callable[..., str]) -> None:
    name = write_module("mine_of_this_directory", "def join(text): return text + '!'")
    assert JOINERS.load(f"{name}:join")("a") == "a!"


def test_an_installed_module_goes_before_one_of_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("BaseModel = 'the wrong one'", "utf-8")
    code = "from saga_dist.utils.registry import import_object; print(import_object('pydantic:BaseModel', key='k'))"
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "<class 'pydantic.main.BaseModel'>\n"


def test_a_missing_module_names_module_node_and_cure(write_module: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"^text.joiner: 'gone.away:join': no module 'gone' on node ") as caught:
        JOINERS.load("gone.away:join")
    assert platform.node() in str(caught.value)
    assert "ray job submit --working-dir" in str(caught.value)
    name = write_module("needs_another", "import not_installed_anywhere")
    with pytest.raises(ConfigError, match="no module 'not_installed_anywhere' on node"):
        JOINERS.load(f"{name}:join")


def test_a_module_that_fails_is_one_line(write_module: Callable[..., str]) -> None:
    name = write_module("fails_on_import", "raise ValueError('first\\nsecond')")
    with pytest.raises(ConfigError, match=r"importing fails_on_import on node .* failed \(ValueError: first") as caught:
        JOINERS.load(f"{name}:join")
    assert "\n" not in str(caught.value)


def test_a_missing_object_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^some.key: 'json:dumps.nothing': json has no 'dumps.nothing'; check"):
        import_object("json:dumps.nothing", key="some.key")


def test_calls_of_ones_own_object_fail_in_one_line_and_other_errors_pass() -> None:
    message = r"^text.joiner: 'mine:join' raised ValueError: first second$"
    with pytest.raises(ConfigError, match=message) as caught, JOINERS.calling("mine:join"):
        raise ValueError("first\nsecond")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(DataError, match="no images"), JOINERS.calling("mine:join"):
        raise DataError("no images")
    with pytest.raises(ValueError, match="a mistake of this package"), JOINERS.calling("comma"):
        raise ValueError("a mistake of this package")
