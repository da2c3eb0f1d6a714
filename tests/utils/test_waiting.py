"""Notices of waits: when they come, what they say, and that they end with the wait."""

from __future__ import annotations

import itertools
import logging
import time

import pytest

from saga_dist.cli import progress
from saga_dist.config import load_config
from saga_dist.runtime import serial
from saga_dist.standin import DEMO_CONFIG
from saga_dist.utils import waiting
from saga_dist.utils.stages import stage
from saga_dist.utils.waiting import WaitNotice, announced, lasting, notice_times


def test_notices_come_at_growing_intervals_up_to_a_minute() -> None:
    assert list(itertools.islice(notice_times(), 8)) == [5, 10, 20, 40, 80, 140, 200, 260]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(waiting, "FIRST_NOTICE_S", 0.05)
    monkeypatch.setattr(waiting, "_POLL_S", 0.01)
    caplog.set_level(logging.INFO, "saga_dist")
    return caplog


def until(condition: object, caplog: pytest.LogCaptureFixture, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in caplog.text:
        assert time.monotonic() < deadline, condition
        time.sleep(0.01)


def test_a_blocked_thread_is_announced_with_its_reason(hurried: pytest.LogCaptureFixture) -> None:
    with announced("the learner", lambda: "2 CPUs needed, 2 there, 0 free"):
        until("a notice", hurried, "waiting for the learner, 0 s so far: 2 CPUs needed, 2 there, 0 free")


def test_a_short_wait_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "saga_dist")
    with announced("the learner") as notice:
        pass
    notice._thread.join(10)
    assert caplog.text == ""


def test_another_wait_is_counted_from_its_own_beginning(hurried: pytest.LogCaptureFixture) -> None:
    waited_for = ["the learner"]
    with WaitNotice(lambda: waited_for[0]):
        until("the first wait", hurried, "waiting for the learner, 0 s so far")
        waited_for[0] = ""
        time.sleep(0.8)  # a count that went on would now say 1 s
        hurried.clear()
        waited_for[0] = "rollout workers"
        until("the second wait", hurried, "waiting for rollout workers, 0 s so far")
        assert "learner" not in hurried.text


def test_a_stage_that_lasts_is_logged_again_and_the_next_one_from_its_own_beginning(
    hurried: pytest.LogCaptureFixture,
) -> None:
    with lasting("loading %s", "the tower"):
        until("the first stage", hurried, "still loading the tower, 0 s so far")
        time.sleep(0.8)  # a count that went on would now say 1 s
        hurried.clear()
        stage("loading %s", "100 % of the rest")
        until("the second stage", hurried, "still loading 100 % of the rest, 0 s so far")
        assert "tower" not in hurried.text


def test_a_stage_that_a_command_shows_is_not_logged_too(
    hurried: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.waiting("checking the model"), lasting("loading the tower"):
        time.sleep(0.5)
    assert "loading the tower …" in capsys.readouterr().err
    assert hurried.text == ""


def test_a_serial_run_says_once_what_it_loads(
    hurried: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage that is entered and the notice that it lasts name the same thing in the same words."""

    def load_slowly(config: object) -> None:
        stage("loading the vision tower of x")
        until("a notice", hurried, "so far")
        raise EOFError

    monkeypatch.setattr(serial, "build_learner", load_slowly)
    with pytest.raises(EOFError):
        serial.SerialRuntime(load_config(DEMO_CONFIG))
    assert [record.getMessage().removesuffix(", 0 s so far") for record in hurried.records][:3] == [
        "loading the models of this run into this process",
        "loading the vision tower of x",
        "still loading the vision tower of x",
    ]
