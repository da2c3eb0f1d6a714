"""The start of a private Ray: what is recorded, removed and restored around it; no Ray is started."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saga_dist.config import RunConfig, load_config
from saga_dist.errors import ConfigError
from saga_dist.runtime.ray import runtime, session
from saga_dist.runtime.ray.runtime import RayRuntime
from saga_dist.runtime.ray.session import RaySession
from saga_dist.runtime.stopping import StartAborted, StopRequest
from saga_dist.standin import DEMO_CONFIG


class NoLeftovers:
    """Notes the calls that a record of leftovers gets."""

    def __init__(self, home: Path | None = None) -> None:
        self.home, self.calls = home, list[tuple[Any, ...]]()

    def note(self, pid: int, *, folder: Path | None = None) -> None:
        self.calls.append(("note", pid, folder))

    def sweep(self) -> None:
        self.calls.append(("sweep", self.home))

    def close(self, *, deadline_s: float) -> None:
        self.calls.append(("close",))


@pytest.fixture
def config() -> RunConfig:
    return load_config(DEMO_CONFIG, ["runtime.kind=ray", "runtime.local_cpus=8"])


def test_the_temporary_folder_is_recorded_before_ray_starts_in_it(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is killed while Ray starts leaves a folder that the next start knows."""
    leftovers, seen = NoLeftovers(), list[Any]()

    def init(**arguments: Any) -> None:
        seen.append((arguments["_temp_dir"], list(leftovers.calls)))
        raise RuntimeError("no Ray here")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session.ray, "init", init)
    with pytest.raises(ConfigError, match="a local Ray did not start"):
        RaySession(config, leftovers=leftovers)  # type: ignore[arg-type]
    ((folder, calls),) = seen
    assert calls == [("note", os.getpid(), Path(folder))]
    assert not Path(folder).exists()


def test_what_the_last_process_left_is_swept_before_ray_starts(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[NoLeftovers] = []

    def leftovers_of(home: Path | None) -> NoLeftovers:
        made.append(NoLeftovers(home))
        return made[-1]

    def start(*arguments: Any, **options: Any) -> None:
        assert made[0].calls == [("sweep", tmp_path)]
        raise EOFError

    monkeypatch.setattr(runtime, "Leftovers", leftovers_of)
    monkeypatch.setattr(runtime, "RaySession", start)
    with pytest.raises(EOFError):
        RayRuntime(config, home=tmp_path)


@pytest.fixture
def handler() -> Iterator[Any]:
    """A handler of SIGTERM of our own."""

    def own(number: int, frame: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, own)
    yield own
    signal.signal(signal.SIGTERM, before)


def test_the_handler_that_ray_replaces_is_restored(handler: Any) -> None:
    with session._own_sigterm_handler(StopRequest()):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_signal_that_rays_handler_received_stops_the_start(handler: Any) -> None:
    stop = StopRequest()
    with pytest.raises(StartAborted), session._own_sigterm_handler(stop):
        raise SystemExit(signal.SIGTERM)
    assert stop()


def test_another_end_of_the_process_passes(handler: Any) -> None:
    stop = StopRequest()
    with pytest.raises(SystemExit), session._own_sigterm_handler(stop):
        raise SystemExit(1)
    assert not stop()
