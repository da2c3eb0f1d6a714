"""The notebook of a first run: its file is as Jupyter writes it without outputs, and its cells run in their order."""

from __future__ import annotations

import json
import re
import webbrowser
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples.page import ROOT
from PIL import Image

from saga_dist.retrieval.results import TRAINED

TEXT = (ROOT / "docs" / "examples" / "first_run.ipynb").read_text("utf-8")
NOTEBOOK = json.loads(TEXT)
OF_EVERY_CELL, OF_CODE = {"cell_type", "id", "metadata", "source"}, {"execution_count", "outputs"}


def source_of(cell_type: str) -> list[str]:
    return ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == cell_type]


def test_the_file_has_the_format_of_notebooks_and_no_outputs() -> None:
    assert json.dumps(NOTEBOOK, indent=1, ensure_ascii=False) + "\n" == TEXT
    assert NOTEBOOK.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK["metadata"]["kernelspec"].keys() == {"display_name", "language", "name"}
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", one) for one in ids)
    for cell in NOTEBOOK["cells"]:
        is_code = cell["cell_type"] == "code"
        assert is_code or cell["cell_type"] == "markdown"
        assert cell.keys() == OF_EVERY_CELL | (OF_CODE if is_code else set())
        assert not is_code or (cell["outputs"], cell["execution_count"]) == ([], None)
        assert cell["metadata"] == {}
        assert "".join(cell["source"]).splitlines(keepends=True) == cell["source"]


def test_it_says_that_the_stand_in_shows_no_quality() -> None:
    assert "machinery, not quality" in source_of("markdown")[0]


@pytest.fixture
def run_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs the code cells in their order in ``tmp_path``, with ``changed`` texts; returns the names that they leave."""
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.chdir(tmp_path)

    def run(changed: Mapping[str, str] = {}) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "__main__", "opened": opened}
        for number, source in enumerate(source_of("code"), start=1):
            exec(compile(changed.get(source, source), f"code cell {number}", "exec", dont_inherit=True), names)
        return names

    return run


@pytest.mark.integration
def test_its_cells_run_and_run_again(
    run_cells: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_cells()
    run, printed = names["run"], capsys.readouterr().out
    assert re.findall(r"^step (\d): loss [\d.]+, reward [\d.]+$", printed, re.MULTILINE) == ["1", "2", "3", "4"]
    assert run.directory == tmp_path / "runs" / "first" and run.results.method(TRAINED).optimizer_steps == 4
    assert re.search(r"^rollout/reward_mean \{1: [\d.]+, 2: ", printed, re.MULTILINE)
    assert f"{TRAINED}: Recall@1 {run.trained.splits['test'].recall_at_1:.3f} of 16 queries" in printed
    assert re.search(r"^pair s0\S+, images \d+ and \d+, .*: 4 completions, ", printed, re.MULTILINE)
    assert "32 embeddings, 0 images cannot be used" in printed
    assert names["found"][0] == (names["table"].ids[0], pytest.approx(1, abs=1e-4))
    assert names["opened"] == [(run.directory / "report.html").as_uri()]
    assert "<html" in (run.directory / "report.html").read_text("utf-8")

    again = run_cells()
    assert "step 1:" not in capsys.readouterr().out
    assert again["found"] == names["found"]


@pytest.mark.integration
def test_one_line_names_a_folder_of_ones_own(
    run_cells: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(15):
        file = tmp_path / "mine" / f"kind {number // 3}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    (line,) = [source for source in source_of("code") if source.startswith("photos = ")]
    names = run_cells({line: 'photos = Path("mine")'})
    assert "15 embeddings, 0 images cannot be used" in capsys.readouterr().out
    assert names["found"][0] == ("kind 0/0.jpg", pytest.approx(1, abs=1e-4))
