"""No command is silent: a bar or spinner on a terminal, lines with the time left elsewhere, and whole log lines."""

from __future__ import annotations

import logging
import threading
from itertools import pairwise

import pytest
from cli.screen import screen, seen_on_a_terminal

from saga_dist.cli import progress
from saga_dist.cli.pace import Pace
from saga_dist.cli.progress import counted, step_progress, waiting
from saga_dist.types import StepResult
from saga_dist.utils.stages import stage

ROLLOUT_STEP = StepResult(step=3, metrics={"rollout/reward_mean": 0.725, "loss/dml": 0.9, "step/wall_s": 2.5})


class Clock:
    """Returns seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_are_due_at_growing_gaps_and_at_both_ends() -> None:
    clock = Clock()
    pace, due = Pace("step", clock=clock), []
    for step in range(1, 1001):
        clock.now += 1.0
        if pace.is_due(step, 1000):
            due.append(step)
    assert due[0] == 1 and due[-1] == 1000
    gaps = [later - earlier for earlier, later in pairwise(due)][:-1]
    assert gaps[:4] == [4, 6, 9, 14]
    assert gaps == sorted(gaps) and max(gaps) <= 300
    assert len(due) < 20


def test_pace_and_time_left_come_from_the_parts_that_were_seen() -> None:
    clock = Clock()
    pace = Pace("step", clock=clock)
    assert pace.text(50, 100) == ""
    assert pace.is_due(50, 100)  # a run that resumes at step 50
    assert pace.text(50, 100) == ""
    clock.now += 31.0
    assert pace.text(60, 100) == "3.1 s/step, about 2 min left"
    clock.now += 124.0
    assert pace.text(100, 100) == "3.1 s/step"
    fast = Pace("image", clock=clock)
    fast.is_due(0, 10_000)
    clock.now += 2.0
    assert fast.text(500, 10_000) == "250 images/s, about 38 s left"
    slow = Pace("step", clock=clock)
    slow.is_due(1, 3)
    clock.now += 7200.0
    assert slow.text(2, 3) == "7200 s/step, about 2 h left"


def test_into_a_pipe_steps_are_lines_with_pace_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "Pace", lambda unit: Pace(unit, clock=clock))
    with step_progress("train", 100) as show:
        for step in range(1, 101):
            clock.now += 3.1
            show(StepResult(step=step, metrics=ROLLOUT_STEP.metrics))
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == ""
    assert lines[0] == "train: step 1/100; reward 0.72  dml 0.900  2.50 s/step"
    assert lines[1] == "train: step 3/100, 3.1 s/step, about 5 min left; reward 0.72  dml 0.900"
    assert lines[-1] == "train: step 100/100, 3.1 s/step; reward 0.72  dml 0.900"
    assert 5 < len(lines) < 20


def test_into_a_pipe_counted_work_is_lines_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "Pace", lambda unit, quiet_s: Pace(unit, quiet_s=quiet_s, clock=clock))
    with counted("embedding", "image") as show:
        for done in range(0, 4001, 100):
            show(done, 4000)
            clock.now += 1.0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[:2] == [
        "embedding: image 200/4,000, 100 images/s, about 38 s left",
        "embedding: image 600/4,000, 100 images/s, about 34 s left",
    ]
    assert printed.err.splitlines()[-1] == "embedding: image 4,000/4,000, 100 images/s"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that were printed, each of which a test can wait for."""
    lines: list[str] = []
    monkeypatch.setattr(progress, "say", lines.append)
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.001)
    monkeypatch.setattr(progress, "REMINDER_S", 0.05)
    return lines


def wait_for(lines: list[str], number: int) -> None:
    for _ in range(1000):
        if len(lines) >= number:
            return
        threading.Event().wait(0.01)
    raise AssertionError(lines)


def test_into_a_pipe_a_wait_says_what_it_waits_for_and_names_its_stages(said: list[str]) -> None:
    with waiting("loading torch"):
        wait_for(said, 1)
        stage("reading %s", "\x1b[2Jrun")
        wait_for(said, 3)
    assert said[:2] == ["loading torch …", "reading \\x1b[2Jrun …"]
    assert said[2] == "reading \\x1b[2Jrun … still, 0 s so far"


def test_a_short_wait_prints_nothing(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 60.0)
    with waiting("loading torch"):
        stage("reading")
    assert said == []


def test_stages_are_log_records_outside_of_a_wait(caplog: pytest.LogCaptureFixture, said: list[str]) -> None:
    caplog.set_level(logging.INFO, logger="saga_dist")
    with waiting("loading torch"):
        stage("inside")
    stage("outside")
    assert [record.getMessage() for record in caplog.records] == ["outside"]


TRAINING = """
import logging, sys, warnings
from saga_dist.cli.arguments import configure_logging
from saga_dist.cli.progress import counted, step_progress, waiting
from saga_dist.types import StepResult
from saga_dist.utils.terminal import terminal

configure_logging()
log = logging.getLogger("saga_dist.training")
with waiting("loading torch"):
    log.info("before the first step")
names = ("rollout/reward_mean", "rollout/verdict_accuracy_same", "rollout/verdict_accuracy_different",
         "rollout/contributing_share", "rollout/json_valid_share", "rollout/tokens_per_s", "loss/dml", "loss/kl")
with step_progress("train", 30) as show:
    for step in range(1, 31):
        show(StepResult(step=step, metrics=dict.fromkeys(names, 0.5 + step)))
        if step % 3 == 0:
            log.warning("event %d %s", step, "abcdefghij" * 12)
        if step == 10:
            print("printed by a library", file=sys.stderr)
with counted("embedding", "image") as show:
    for done in range(0, 101, 10):
        show(done, 100)
        log.info("image %d", done)
print("the result")
"""


def test_log_lines_do_not_tear_the_bar_at_80_columns() -> None:
    lines = seen_on_a_terminal(TRAINING)
    bars = [line for line in lines if "━" in line]
    assert len(bars) == 1, "\n".join(lines)
    assert bars[0].lstrip("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ").startswith("train ━") and "30/30" in bars[0]
    assert lines.count("the result") == lines.count("printed by a library") == 1
    joined = "".join(line.strip() for line in lines).replace(" ", "")
    for step in range(3, 31, 3):
        assert joined.count(f"event{step}{'abcdefghij' * 12}") == 1, "\n".join(lines)
    assert [line.split(": ")[-1] for line in lines if ": image" in line] == [f"image {n}" for n in range(0, 101, 10)]
    assert "loading torch" not in "\n".join(lines)  # a spinner leaves nothing behind


def test_the_screen_wraps_erases_and_goes_up_as_a_terminal_does() -> None:
    assert screen("ab\r\ncd\x1b[1A\rx") == ["xb", "cd"]
    assert screen("bar\r\x1b[2Klog\r\n\x1b[32mbar\x1b[0m") == ["log", "bar"]
    assert screen("a" * 81) == ["a" * 80, "a"]
