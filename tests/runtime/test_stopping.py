"""SIGTERM and SIGINT: at once before the first step, between steps afterwards."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from saga_dist.cli.main import main
from saga_dist.config import load_config
from saga_dist.errors import Interrupted
from saga_dist.runtime.stopping import StartAborted, StopRequest, stop_on_signal
from saga_dist.standin import DEMO_CONFIG
from saga_dist.training import coordinator


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler runs between two bytecodes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_start_wherever_it_is(number: int) -> None:
    before = signal.getsignal(number)

    def start() -> None:
        with stop_on_signal():
            with suppress(Exception):  # as libraries that load weights do
                send(number)
            pytest.fail("went on")

    with pytest.raises(Interrupted) as caught:
        start()
    assert caught.value.exit_code == 3
    assert str(caught.value) == "stopped before the first step; the same command starts again"
    assert signal.getsignal(number) is before


def test_a_signal_after_the_start_is_obeyed_between_steps() -> None:
    with stop_on_signal() as stop:
        stop.steps_begin()
        send(signal.SIGTERM)
        assert stop()
        stop.check()


def test_a_signal_while_ray_waits_ends_the_start_after_the_wait() -> None:
    def start() -> None:
        with stop_on_signal() as stop:
            with stop.deferred():
                send(signal.SIGTERM)
            assert stop()
            stop.check()
            pytest.fail("went on")

    with pytest.raises(Interrupted):
        start()


def test_a_request_just_before_the_first_step_is_not_lost() -> None:
    stop = StopRequest()
    with stop.deferred():
        stop.receive(signal.SIGTERM)
    with pytest.raises(StartAborted):
        stop.steps_begin()


def test_a_second_interrupt_from_the_keyboard_is_not_deferred() -> None:
    stop = StopRequest()
    stop.steps_begin()
    stop.receive(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stop.receive(signal.SIGINT)
    stop.receive(signal.SIGTERM)


def test_loading_weights_is_ended_by_the_command_with_exit_code_3(
    tmp_path: Path, tiny_checkpoint: Path, write_tiny_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from saga_dist.runtime import serial

    def load_for_minutes(config: object) -> None:
        send(signal.SIGTERM)
        pytest.fail("went on")

    monkeypatch.setattr(serial, "build_learner", load_for_minutes)
    config = write_tiny_config(tmp_path / "run.toml", tiny_checkpoint)
    monkeypatch.setattr(sys, "argv", ["saga-dist", "train", str(config), "--run-dir", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3


class SignalledImport:
    """Import hook during which the process receives SIGTERM, when a module is looked for."""

    def __init__(self, module: str) -> None:
        self.module, self.met = module, False

    def find_spec(self, name: str, *_: object) -> None:
        if name == self.module:
            self.met = True
            send(signal.SIGTERM)


@pytest.fixture
def default_handler() -> Iterator[None]:
    """In place of the default handler of SIGTERM, which would end the tests too, one with the same exit code."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("default_handler")
@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("train run.toml", "saga_dist.runtime.run"),
        ("train run.toml", "saga_dist.runtime.validation"),
        ("rollout run.toml", "saga_dist.runtime.run"),
        ("sweep table.toml", "saga_dist.sweep.runner"),
        ("demo --runtime serial", "saga_dist.cli.demo_rows"),
    ],
)
def test_sigterm_while_a_command_imports_ends_it_with_exit_code_3(
    command: str,
    module: str,
    tmp_path: Path,
    tiny_checkpoint: Path,
    write_tiny_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_tiny_config(tmp_path / "run.toml", tiny_checkpoint)
    (tmp_path / "table.toml").write_text(
        'title = "One row"\nconfig = "run.toml"\nbaseline = "a"\nseeds = [0]\n[[variant]]\nname = "a"\nlabel = "a"\n'
    )
    monkeypatch.chdir(tmp_path)
    hook = SignalledImport(module)
    parent, name = module.rpartition(".")[::2]
    for loaded in [loaded for loaded in sys.modules if loaded == module or loaded.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.delattr(sys.modules.get(parent), name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [hook, *sys.meta_path])
    monkeypatch.setattr(sys, "argv", ["saga-dist", *command.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert hook.met
    assert ended.value.code == 3
    assert "stopped before the first step; the same command starts again" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_signal_that_was_swallowed_ends_the_start_where_the_run_is_opened(tmp_path: Path) -> None:
    """Python prints and drops what a handler raises within a finalizer."""
    from saga_dist.runtime import run

    stop = StopRequest()
    with suppress(StartAborted):
        stop.receive(signal.SIGTERM)
    with pytest.raises(StartAborted):
        run.train(load_config(DEMO_CONFIG), tmp_path / "run", stop=stop)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.integration
@pytest.mark.parametrize(("place", "saved"), [("check_engine", []), ("with_replay", ["step_00000001"])])
def test_a_checkpoint_is_written_from_the_first_step_on(
    place: str,
    saved: list[str],
    tmp_path: Path,
    tiny_checkpoint: Path,
    write_tiny_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The signal comes in the start-up check, or in the first step."""
    original = getattr(coordinator, place)

    def signalled(*arguments: Any) -> Any:
        send(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(coordinator, place, signalled)
    config = write_tiny_config(tmp_path / "run.toml", tiny_checkpoint)
    monkeypatch.setattr(sys, "argv", ["saga-dist", "train", str(config), "--run-dir", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert [path.name for path in (tmp_path / "run").glob("checkpoints/step_*")] == saved
