"""Every bad input of the table ends in one line with exit code 2 or in a counted note, never in a traceback.

A new bad input is one row in the ``rows_*.py`` of its area.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from bad_inputs.row import AREAS, MOST_OF_A_KIND, BadInput, Workspace, check

ROWS: list[BadInput] = [row for area in AREAS for row in import_module(f"bad_inputs.rows_{area}").ROWS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_it_ends_in_one_line_or_a_counted_note(
    row: BadInput,
    tmp_path: Path,
    tiny_checkpoint: Path,
    write_tiny_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)

    def write_config(**sections: dict[str, object]) -> Path:
        return write_tiny_config(tmp_path / "run.toml", tiny_checkpoint, **sections)

    workspace = Workspace(tmp_path, tiny_checkpoint, write_config, monkeypatch)
    check(row, workspace, capsys, lambda: caplog.text)


def test_rows_have_names_of_their_own() -> None:
    assert [name for name, count in Counter(row.name for row in ROWS).items() if count > 1] == []


def test_no_kind_fills_the_table() -> None:
    kinds = Counter(row.kind for row in ROWS)
    assert len(ROWS) >= 150
    assert len(kinds) >= 40
    assert {kind: count for kind, count in kinds.items() if count > MOST_OF_A_KIND} == {}
