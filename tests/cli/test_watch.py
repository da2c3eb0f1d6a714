"""``saga-dist watch`` as its user meets it: one view, lines into a pipe, and an end with the run."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from cli.screen import seen_on_a_terminal
from report.live.runs import add_row, beat, make_run, write_results

from saga_dist.cli import main as cli
from saga_dist.utils.directory_owner import OWNER_NAME


def watch(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Returns the exit code of ``saga-dist watch``."""
    monkeypatch.setattr(sys, "argv", ["saga-dist", "watch", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_once_prints_one_view_of_a_stopped_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_run(tmp_path / "run", num_steps=3)
    assert watch(str(path), "--once", monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "stopped: step 3 of 10, no process writes here" in printed
    assert "rollout/reward_mean" in printed and "\x1b" not in printed


def test_once_waits_for_a_heartbeat_of_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_run(tmp_path / "run", num_steps=3)
    beat(path, 1)
    monkeypatch.setattr(time, "sleep", lambda seconds: beat(path, 2))
    assert watch(str(path), "--once", monkeypatch=monkeypatch) == 0
    assert "running: step 3 of 10" in capsys.readouterr().out


def test_into_a_pipe_each_news_is_a_line_and_the_command_ends_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_run(tmp_path / "run", num_steps=3)
    beat(path, 1)
    looks: list[float] = []

    def live_on(seconds: float) -> None:
        """Stands in for the sleep between two looks: the run goes on meanwhile."""
        looks.append(seconds)
        if len(looks) == 2:
            add_row(path, 4)
        if len(looks) == 3:
            for step in range(5, 11):
                add_row(path, step)
            write_results(path)
            (path / OWNER_NAME).unlink()

    monkeypatch.setattr(time, "sleep", live_on)
    assert watch(str(path), "--every", "7", monkeypatch=monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert looks == [7, 7, 7]
    assert [line.partition(",")[0] for line in lines] == [
        "running: step 3 of 10",
        "running: step 4 of 10",
        "finished: step 10 of 10; Recall@1 30.0 (trained)",
    ]
    assert "reward 0.50" in lines[1]


def test_a_finished_run_is_shown_whole_and_the_command_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_run(tmp_path / "run", num_steps=10)
    write_results(path)
    assert watch(str(path), monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "finished: step 10 of 10" in printed and "share/tower_grpo" in printed


def test_on_a_terminal_the_view_is_drawn_anew_until_the_run_has_finished(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", num_steps=9)
    beat(path, 1)
    code = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from pathlib import Path\n"
        "from report.live.runs import add_row, write_results\n"
        "from saga_dist.cli import main as cli\n"
        f"path = Path({str(path)!r})\n"
        "def finish(seconds):\n"
        "    add_row(path, 10)\n"
        "    write_results(path)\n"
        "    (path / '.owner.json').unlink()\n"
        "time.sleep = finish\n"
        "sys.argv = ['saga-dist', 'watch', str(path)]\n"
        "cli.main()\n"
    )
    lines = [line for line in seen_on_a_terminal(code) if line]
    assert sum("finished: step 10 of 10" in line for line in lines) == 1
    assert not any("running" in line for line in lines)  # the earlier view was drawn over
    assert any(line.split()[:2] == ["rollout/reward_mean", "1.25"] for line in lines)
