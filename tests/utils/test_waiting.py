"""Notices of waits: when they come, what they say, and that they end with the wait."""

from __future__ import annotations

import itertools
import logging
import time

import pytest

from saga_dist.utils import waiting
from saga_dist.utils.waiting import WaitNotice, announced, notice_times


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
