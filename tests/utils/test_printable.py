"""Hostile names in what goes to a terminal: class names, file names, errors that quote them, names of runs."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path

import pytest
from rich.console import Console

from saga_dist.cli import progress
from saga_dist.cli.console import print_results
from saga_dist.cli.progress import step_progress
from saga_dist.retrieval.results import MethodResult, SplitResult, VerdictResult
from saga_dist.sweep import runner
from saga_dist.sweep.records import Summary, SummaryRow
from saga_dist.sweep.render import markdown, terminal, write_summary
from saga_dist.types import StepResult
from saga_dist.utils import terminal as terminal_module
from saga_dist.utils.printable import PrintableFormatter, printable, printable_lines

HOSTILE = "[/red][link=file:///x]<script>|\x1b]0;title\x07\x1b[2J\r\u202e\ud800\udcff" + "x" * 1_000_000
ESCAPED = "[/red][link=file:///x]<script>|\\x1b]0;title\\x07\\x1b[2J\\r\\u202e\\ud800\\udcff"

NAME = HOSTILE[:200].replace("\ud800\udcff", "")  # a record of results holds no lone surrogate
SHOWN = ESCAPED.removesuffix("\\ud800\\udcff")


def on_a_terminal() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=2000, force_terminal=True, color_system=None), file


def assert_inert(text: str) -> None:
    text.encode("utf-8")  # no lone surrogate
    for command in ("\x1b]", "\x1b[2J", "\x07", "\r", "\u202e"):
        assert command not in text


def test_what_a_terminal_obeys_is_written_out() -> None:
    assert printable(HOSTILE).startswith(ESCAPED)
    assert printable("Bärlauch 鳥 – 3 µs") == "Bärlauch 鳥 – 3 µs"
    assert printable_lines("a\x1b\nb") == "a\\x1b\nb"


def test_logs_are_printable_and_a_traceback_keeps_its_lines() -> None:
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(PrintableFormatter("%(message)s"))
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record = logging.getLogger("x").makeRecord("x", 40, "f", 1, "of %s", (HOSTILE,), sys.exc_info())
    text = handler.format(record)
    assert_inert(text)
    assert text.startswith(f"of {ESCAPED}") and "\nTraceback (most recent call last):\n" in text


def test_results_of_a_run_with_a_hostile_name_are_a_table() -> None:
    split = SplitResult(
        recall_at_1=0.5, recall_at_2=0.6, recall_at_4=0.7, recall_at_8=0.8, nmi=0.3,
        confidence_interval=(0.4, 0.6), num_queries=12, num_classes=3,
    )  # fmt: skip
    judged = VerdictResult(
        same_accuracy=0.5, different_accuracy=0.25, json_valid_share=1.0, num_same=4, num_different=4
    )
    method = MethodResult(
        name=NAME, splits={"test": split}, seeds=(0,), wall_s=1.0, verdicts={"test": judged}, probes={NAME: 0.5}
    )
    console, file = on_a_terminal()
    print_results(console, [method])
    assert_inert(file.getvalue())
    assert file.getvalue().count(SHOWN) == 4  # three tables, and a heading


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_of_a_run_with_a_hostile_name(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, width=2000, force_terminal=terminal, color_system=None, markup=False)
    for module in (progress, terminal_module):
        monkeypatch.setattr(module, "terminal", lambda: console)
    with step_progress(HOSTILE[:200], 1) as on_step:
        on_step(StepResult(1, {"loss/dml": 0.5}))
    assert ESCAPED in file.getvalue()
    for command in ("\x1b]", "\x1b[2J", "\x07", "\u202e", "\ud800"):
        assert command not in file.getvalue()


def test_a_table_with_hostile_labels_and_reasons(tmp_path: Path) -> None:
    row = SummaryRow(name="a", label=NAME, seeds=(), figures={}, confidence_interval=None, paper=None, versus=())
    summary = Summary(
        title=NAME, rows=(row,), num_queries=0, num_classes=0, missing={"a/seed_0": f"failed: {printable(HOSTILE)}"}
    )
    text = markdown(summary)
    assert_inert(text)
    assert "<script>" not in text and "&lt;script&gt;" + chr(92) + "|" in text
    write_summary(summary, tmp_path)
    assert (tmp_path / "table.md").read_text("utf-8") == text
    console, file = on_a_terminal()
    for part in terminal(summary):
        console.print(part)
    assert_inert(file.getvalue())
    assert SHOWN in file.getvalue()


def test_a_cell_that_fails_with_hostile_words_has_a_printable_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError(HOSTILE)

    class Cell:
        name, finished = "a/seed_0", False

    monkeypatch.setattr(runner, "_run", fail)
    failures = runner.run_sweep([Cell()], tmp_path, progress=None)  # type: ignore[list-item, arg-type]
    assert_inert(failures["a/seed_0"])
    assert json.loads((tmp_path / "failures.json").read_text("utf-8")) == failures
