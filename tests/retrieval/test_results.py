from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from saga_dist.errors import DataError
from saga_dist.retrieval.results import MethodResult, Results, SplitResult, VerdictResult


def _split(**change: object) -> SplitResult:
    values = {
        "recall_at_1": 0.25,
        "recall_at_2": 0.5,
        "recall_at_4": 0.5,
        "recall_at_8": 1.0,
        "nmi": 0.1,
        "confidence_interval": (0.1, 0.4),
        "num_queries": 40,
        "num_classes": 4,
    }
    return SplitResult(**(values | change))


def _results() -> Results:
    verdicts = VerdictResult(
        same_accuracy=0.9, different_accuracy=0.8, json_valid_share=1.0, num_same=20, num_different=20
    )
    saga = MethodResult(
        name="SAGA",
        splits={"val": _split(), "test": _split(map_at_r=0.2)},
        seeds=(0, 1),
        wall_s=12.5,
        optimizer_steps=80,
        selected_step=60,
        verdicts={"test": verdicts},
        probes={"bill": 0.5},
    )
    plain = MethodResult(name="pre-trained", splits={"test": _split()}, seeds=(0,), wall_s=0.0)
    return Results(methods=[plain, saga], backbone_unchanged=True)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    _results().save(path)
    assert Results.load(path) == _results()
    assert [item.name for item in tmp_path.iterdir()] == ["results.json"]
    tree = json.loads(path.read_text("utf-8"))
    row = tree["methods"][1]
    assert (row["name"], row["seeds"], row["wall_s"]) == ("SAGA", [0, 1], 12.5)
    assert row["splits"]["test"]["recall_at_8"] == 1.0
    assert row["splits"]["test"]["confidence_interval"] == [0.1, 0.4]
    assert Results.load(path).method("SAGA").probes == {"bill": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recall_at_1": 25.0}, "recall_at_1"),
        ({"recall_at_1": float("nan")}, "recall_at_1"),
        ({"recall_at_2": 0.1}, "no decrease"),
        ({"confidence_interval": (0.4, 0.1)}, "low <= high"),
        ({"num_unfindable": 41}, "41 unfindable of 40"),
        ({"nmi": None}, "nmi"),
        ({"recall_at_16": 1.0}, "recall_at_16"),
    ],
)
def test_impossible_figures_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _split(**change)


def test_rows_are_checked_and_found_by_name() -> None:
    with pytest.raises(ValidationError, match="selected_step = 3 of 2"):
        MethodResult(name="a", splits={}, seeds=(0,), wall_s=0.0, optimizer_steps=2, selected_step=3)
    plain = _results().methods[0]
    with pytest.raises(ValidationError, match="each name once"):
        Results(methods=[plain, plain])
    with pytest.raises(DataError, match="no method 'x'; expected one of pre-trained, SAGA"):
        _results().method("x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "results.json: file: invalid json"),
        ("[]", "results.json: file"),
        ('{"methods": [], "format_version": 2}', "format_version"),
        ('{"methods": [], "more": 1}', "more"),
        ('{"methods": [{"name": "a", "splits": {}, "seeds": [0], "wall_s": "1"}]}', "methods.0.wall_s"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=message) as caught:
        Results.load(path)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Results.load(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not UTF-8"):
        Results.load(tmp_path / "binary.json")
