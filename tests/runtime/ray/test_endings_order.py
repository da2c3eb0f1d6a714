"""An actor is asked to close before its process is killed, and killed whatever it answers; without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from saga_dist.runtime.leftovers import Leftovers
from saga_dist.runtime.ray import endings
from saga_dist.runtime.ray.endings import Endings
from saga_dist.runtime.stopping import StartAborted, StopRequest


async def answers(events: list[str]) -> None:
    events.append("closed")


async def hangs(events: list[str]) -> None:
    events.append("asked")
    await asyncio.Event().wait()


async def is_dead(events: list[str]) -> None:
    events.append("asked")
    raise RayActorError


@pytest.fixture
def end(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Ends an actor that closes as the given function does, and returns what happened in order."""

    def run(close: Callable[[list[str]], Awaitable[None]], stop: StopRequest | None = None) -> list[str]:
        events: list[str] = []
        actor = SimpleNamespace(close=SimpleNamespace(remote=lambda: close(events)))
        monkeypatch.setattr(endings, "answer_of", lambda answer: answer)
        monkeypatch.setattr(endings, "process_of", lambda actor: None)
        monkeypatch.setattr(endings.ray, "kill", lambda actor, no_restart: events.append("killed"))
        asyncio.run(Endings(Leftovers(None), stop).end(actor))
        return events

    return run


def test_an_actor_closes_and_is_killed_then(end: Callable[..., list[str]]) -> None:
    assert end(answers) == ["closed", "killed"]


def test_an_actor_that_hangs_is_killed_at_the_deadline(
    end: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endings, "CLOSE_S", 0.05)
    assert end(hangs) == ["asked", "killed"]
    assert "a worker did not close within 0.05 s and is killed" in caplog.text


def test_an_actor_that_is_dead_is_killed_without_a_warning(
    end: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    assert end(is_dead) == ["asked", "killed"]
    assert caplog.text == ""


def test_a_signal_before_the_first_step_shortens_the_deadline(
    end: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endings, "ABORT_S", 0.05)
    stop = StopRequest()
    with pytest.raises(StartAborted):
        stop.receive(15)
    assert end(hangs, stop) == ["asked", "killed"]
    assert "within 0.05 s" in caplog.text


def test_what_a_worker_of_this_node_created_is_recorded_before_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    leftovers = SimpleNamespace(note=lambda pid: events.append(pid))
    monkeypatch.setattr(endings, "process_of", lambda actor: SimpleNamespace(node_id=actor, pid=4242))
    monkeypatch.setattr(endings.ray, "kill", lambda actor, no_restart: events.append("killed"))
    here = SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setattr(endings.ray, "get_runtime_context", lambda: here)
    Endings(leftovers).kill("here")  # type: ignore[arg-type]
    Endings(leftovers).kill("another node")  # type: ignore[arg-type]
    assert events == [4242, "killed", "killed"]
