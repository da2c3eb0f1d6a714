"""``saga-dist docs``: where the built pages are, and what is missing when they are not there."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

import pytest

from saga_dist.cli import main as cli
from saga_dist.utils import shipped


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Addresses that were opened in the browser; the package lies in ``tmp_path``."""
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "saga_dist")
    return addresses


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Returns the exit code of ``saga-dist docs``."""
    monkeypatch.setattr(sys, "argv", ["saga-dist", "docs", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.mark.parametrize("place", ["saga_dist/shipped/site", "build/site"], ids=["a wheel", "a checkout"])
def test_a_page_is_opened_from_the_disk(
    place: str, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True)
    for name in ("index", "metrics", "404"):
        (folder / f"{name}.html").touch()
    assert run(monkeypatch=monkeypatch) == 0
    assert opened == [(folder / "index.html").as_uri()]
    assert run("metrics", "--path", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.splitlines() == [str(folder / "index.html"), str(folder / "metrics.html")]
    assert len(opened) == 1, "--path opens nothing"
    assert run("metric", monkeypatch=monkeypatch) == 2
    assert "there is no page 'metric'; expected one of index, metrics" in capsys.readouterr().err


def test_pages_that_are_not_built_are_one_line(
    opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch=monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the documentation is not built; run `make docs`" in line
    assert opened == []
