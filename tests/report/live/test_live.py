"""The state of a run, read from its directory while another process may write there."""

from __future__ import annotations

from pathlib import Path

import pytest
from report.live.runs import add_row, beat, make_group, make_run, write_results, write_workers
from rich.console import Console

from saga_dist.errors import CheckpointError
from saga_dist.metrics.group_words import group_in_words, shown_group
from saga_dist.metrics.registry import find_metric
from saga_dist.report.live import RunWatcher
from saga_dist.report.live.heartbeat import HeartbeatObserver, Pulse
from saga_dist.report.live.rows import GrowingRows
from saga_dist.report.live.view import SHOWN, status, trend, view, worker_lines
from saga_dist.utils.directory_owner import OWNER_NAME, WATCH_S, owned_directory


class Clock:
    """Returns seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def shown(path: Path, *, width: int = 160) -> str:
    """Returns the text of the view of a run."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(view(RunWatcher(path).read(), width=width))
    return capture.get()


def test_rows_are_read_as_they_come_and_again_when_a_resume_replaced_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = GrowingRows(path)
    assert rows.read() == {}
    path.write_text('{"step": 1, "loss/dml": 0.5}\n{"step": 2, "loss/d')
    assert rows.read() == {1: {"step": 1, "loss/dml": 0.5}}  # a line that is half written waits
    with path.open("a") as file:
        file.write('ml": 0.4}\n{"step": 2, "validation/recall_at_1": 0.25}\n')
    assert rows.read()[2] == {"step": 2, "loss/dml": 0.4, "validation/recall_at_1": 0.25}
    replaced = tmp_path / "new"
    replaced.write_text("".join(f'{{"step": {step}, "loss/dml": 0.5}}\n' for step in (1, 2, 3, 4)))  # longer
    replaced.replace(path)
    assert rows.read() == {step: {"step": step, "loss/dml": 0.5} for step in (1, 2, 3, 4)}
    path.write_text('{"step": 1, "loss/dml": 0.5}\n')  # shorter, in the same file
    assert list(rows.read()) == [1]


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(CheckpointError, match="holds a line that is not a row"):
        GrowingRows(tmp_path / "metrics.jsonl").read()


def test_a_heartbeat_of_another_host_is_known_by_its_change_and_missed_after_a_while(tmp_path: Path) -> None:
    clock = Clock()
    observer = HeartbeatObserver(tmp_path, clock)
    assert observer.read().pulse is Pulse.NONE
    beat(tmp_path, 1)
    assert observer.read().pulse is Pulse.UNKNOWN
    clock.now += 5
    assert observer.read().pulse is Pulse.UNKNOWN
    beat(tmp_path, 2)
    assert observer.read().pulse is Pulse.ALIVE
    clock.now += WATCH_S
    assert observer.read().pulse is Pulse.ALIVE
    clock.now += 1
    silent = observer.read()
    assert silent.pulse is Pulse.SILENT and silent.unchanged_s == WATCH_S + 1
    beat(tmp_path, 3)
    assert observer.read().pulse is Pulse.ALIVE
    (tmp_path / OWNER_NAME).unlink()
    assert observer.read().pulse is Pulse.NONE


def test_a_living_process_of_this_machine_needs_no_second_heartbeat(tmp_path: Path) -> None:
    with owned_directory(tmp_path / "run", option="--run-dir"):
        assert HeartbeatObserver(tmp_path / "run").read().pulse is Pulse.ALIVE


def test_status_of_a_run_at_each_time_of_its_life(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", num_steps=0)
    watcher = RunWatcher(path)
    assert status(watcher.read()).startswith("stopped: step 0 of 10, no process writes here; the command that started")
    beat(path, 1)
    assert status(watcher.read()) == "starting: step 0 of 10; process 4321 on gpu-7"
    for step in (1, 2):
        add_row(path, step)
    assert status(watcher.read()) == "running: step 2 of 10, 2 s/step, about 16 s left; process 4321 on gpu-7"
    for step in range(3, 11):
        add_row(path, step)
    assert status(watcher.read()) == "evaluating: step 10 of 10; process 4321 on gpu-7"
    write_results(path)
    assert not watcher.read().is_finished  # the process has not ended
    (path / OWNER_NAME).unlink()
    assert watcher.read().is_finished
    assert status(watcher.read()) == "finished: step 10 of 10; Recall@1 30.0 (trained), 2.5 before"


def test_a_silent_run_is_said_and_its_last_workers_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, path = Clock(), make_run(tmp_path / "run", num_steps=3)
    monkeypatch.setattr(
        "saga_dist.report.live.run.HeartbeatObserver", lambda run_dir: HeartbeatObserver(run_dir, clock)
    )
    beat(path, 1)
    write_workers(path, "busy")
    watcher = RunWatcher(path)
    assert list(worker_lines(watcher.read())) == ["rollout workers: 1 of 1 up (1 busy)"]
    clock.now += 25
    run = watcher.read()
    assert status(run).startswith("silent: step 3 of 10, no heartbeat of process 4321 on gpu-7 for 25 s; it has died")
    assert list(worker_lines(run)) == []


def test_recorded_rollouts_without_a_training_are_finished_with_their_last_step(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", num_steps=10)
    assert not RunWatcher(path).read().is_finished  # a training has not been evaluated yet
    (path / "checkpoints").rmdir()
    assert RunWatcher(path).read().is_finished


def test_the_view_has_steps_workers_numbers_with_units_and_the_last_group(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", num_steps=3)
    beat(path, 1)
    write_workers(path, "busy", "idle", "starting")
    text = shown(path)
    assert "rollout workers: 2 of 3 up (1 busy, 1 idle, 1 starting)" in text
    assert "last group (step 3): pair s000003.m0.p01" in text
    assert "The bills differ." in text and "red" not in text.split()  # its first completion only
    lines = {line.split()[0]: " ".join(line.split()) for line in text.splitlines() if line.strip()}
    assert lines["rollout/reward_mean"].startswith("rollout/reward_mean 0.375 ▁▅█ mean reward Mean reward")
    assert lines["rollout_pool/in_flight_share"].partition(" ")[2].startswith("0.5 ▁▁▁ share in [0, 1] Mean number")
    assert lines["loss/kl"].startswith("loss/kl 2.5 (step 1) ▁ nats")  # the later steps have none
    assert lines["rollout/tokens_per_s"].startswith("rollout/tokens_per_s 1,992 ▁▁▁ tokens per second")
    assert "loss/verdict" not in text  # the run has no such metric
    narrow = shown(path, width=80)
    assert "share in [0, 1]" in narrow and "Mean number" not in narrow
    assert max(map(len, narrow.splitlines())) <= 80


def test_a_group_in_words_by_hand() -> None:
    assert group_in_words(make_group()) == (
        "pair s000003.m0.p01, images 3 and 4, different classes: 4 completions, 2 right, 1 wrong, 1 without a verdict; "
        "mean reward 0.50, rewards vary, so it has a GRPO gradient"
    )
    even = make_group(pair_id="x\x1b[2J", rewards=(1, 1, 1, 1))
    assert group_in_words(even).startswith("pair x\\x1b[2J, images")
    assert group_in_words(even).endswith("mean reward 1.00, rewards are equal, so it has no GRPO gradient")
    assert shown_group([even, make_group()]) is not even  # the one that trains
    assert shown_group([even]) is even
    assert shown_group([]) is None


def test_a_trend_by_hand() -> None:
    assert trend([0.0, 1.0, 0.5]) == "▁█▅"
    assert trend([2.0, 2.0]) == "▁▁"
    assert trend([0.0, float("nan"), 1.0]) == "▁ █"
    assert trend([float("inf")]) == ""


def test_the_registry_explains_every_number_of_the_view() -> None:
    assert [name for names in SHOWN.values() for name in names if find_metric(name) is None] == []
