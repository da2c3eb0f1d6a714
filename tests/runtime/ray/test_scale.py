"""`saga-dist scale`: what the run writes down, what it obeys, what a user is told. From another process, as in life."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from saga_dist.cli.scale import parse_targets, workers_table
from saga_dist.errors import ConfigError, DeadlineExceeded
from saga_dist.runtime.ray import scale, scale_command
from saga_dist.runtime.ray.adapter import PoolConfig, Timeouts, WorkerStatus
from saga_dist.runtime.ray.errors import WorkerInfo
from saga_dist.runtime.ray.scale import ScaleController, request_file
from saga_dist.runtime.ray.scale_command import read_workers, request_scale, wait_for

ROOT = Path(__file__).resolve().parents[3]


class ObedientPool:
    """Has the workers it is asked for, at once."""

    def __init__(self, target: int, *, state: str = "idle") -> None:
        self.target, self.state, self.orders = target, state, list[tuple[int, bool]]()

    def resize(self, number: int, *, at_once: bool = False) -> None:
        self.target = number
        self.orders.append((number, at_once))

    def status(self) -> tuple[WorkerStatus, ...]:
        infos = [WorkerInfo(pid=100 + index, host="node", node_id="n", stderr="") for index in range(self.target)]
        return tuple(WorkerStatus(f"rollout-{index}", self.state, info, 5.0) for index, info in enumerate(infos))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


Watch = Callable[..., ScaleController]


@pytest.fixture
def watch(run_dir: Path) -> Iterator[Watch]:
    watches: list[ScaleController] = []

    def make(**pools: tuple[Any, tuple[int, int]]) -> ScaleController:
        watches.append(ScaleController(run_dir, pools))
        watches[-1].start()
        return watches[-1]

    yield make
    for each in watches:
        each.close()


def test_request_is_obeyed_and_acknowledged(run_dir: Path, watch: Watch) -> None:
    rollout, replay = ObedientPool(1), ObedientPool(2)
    watch(rollout=(rollout, (1, 4)), replay=(replay, (1, 2)))
    request_scale(run_dir, {"rollout": 3}, at_once=True)
    view = wait_for(run_dir, {"rollout": 3}, deadline_s=30)
    assert rollout.orders == [(3, True)]
    assert replay.orders == []
    assert [(member.name, member.state, member.pid) for member in view.pools["rollout"].members] == [
        ("rollout-0", "idle", 100),
        ("rollout-1", "idle", 101),
        ("rollout-2", "idle", 102),
    ]
    assert (view.pid, view.host) == (os.getpid(), platform.node())
    request_scale(run_dir, {"rollout": 1, "replay": 1})
    wait_for(run_dir, {"rollout": 1, "replay": 1}, deadline_s=30)
    assert (rollout.orders, replay.orders) == ([(3, True), (1, False)], [(1, False)])


def test_wait_ends_by_its_deadline_and_says_how_far_it_is(run_dir: Path, watch: Watch) -> None:
    watch(rollout=(ObedientPool(1, state="starting"), (1, 4)))
    request_scale(run_dir, {"rollout": 2})
    with pytest.raises(DeadlineExceeded, match=r"^rollout: 0 of 2 run after 2\.5 s; the run goes on trying"):
        wait_for(run_dir, {"rollout": 2}, deadline_s=2.5)


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        ({"rollout": 5}, "rollout=5: out of range; expected 1 to 4; the range is rollout.min_workers to rollout.max_w"),
        ({"rollout": 0}, "rollout=0: out of range; expected 1 to 4"),
        ({"critic": 1}, "critic=1: no such workers; expected rollout"),
        ({"replay": 1}, "replay=1: the learner replays itself; expected rollout; set replay.workers before the start"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(
    targets: dict[str, int], line: str, run_dir: Path, watch: Watch
) -> None:
    watch(rollout=(ObedientPool(1), (0, 4)))
    with pytest.raises(ConfigError) as caught:
        request_scale(run_dir, targets)
    assert str(caught.value).startswith(line)
    assert not list(run_dir.glob("scale*"))


def test_nothing_to_scale(run_dir: Path, watch: Watch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no workers to scale here; expected a run in progress with runtime"):
        read_workers(run_dir)
    with pytest.raises(ConfigError, match=r"holds no config\.json; expected the directory of a run"):
        read_workers(tmp_path / "elsewhere")
    watch()
    with pytest.raises(ConfigError, match="expected none: this run trains without an MLLM"):
        request_scale(run_dir, {"rollout": 1})


def test_files_of_a_run_that_died_are_not_believed(run_dir: Path, watch: Watch) -> None:
    rollout = ObedientPool(1)
    first = watch(rollout=(rollout, (1, 4)))
    request_scale(run_dir, {"rollout": 3})
    left = request_file(run_dir, "rollout").read_bytes()
    wait_for(run_dir, {"rollout": 3}, deadline_s=30)
    written = json.loads((run_dir / "workers.json").read_text())
    first.close()
    assert sorted(path.name for path in run_dir.iterdir()) == ["config.json"], "a run that ends takes its files along"

    ended = subprocess.Popen(["true"])
    ended.wait()
    (run_dir / "workers.json").write_text(json.dumps({**written, "pid": ended.pid}))
    with pytest.raises(ConfigError, match=rf"the run has died: process {ended.pid} on .* is gone"):
        read_workers(run_dir)
    request_file(run_dir, "rollout").write_bytes(left)  # asked of the process before
    again = ObedientPool(2)
    watch(rollout=(again, (1, 4))).poll()
    assert again.orders == []


def test_requests_for_two_roles_at_the_same_time_both_hold(run_dir: Path, watch: Watch) -> None:
    rollout, replay = ObedientPool(3), ObedientPool(3)
    running = watch(rollout=(rollout, (1, 4)), replay=(replay, (1, 4)))
    request_scale(run_dir, {"rollout": 1})
    request_scale(run_dir, {"replay": 2}, at_once=True)  # before the run has read the first one
    running.poll()
    assert (rollout.orders, replay.orders) == ([(1, False)], [(2, True)])
    running.poll()
    assert (rollout.orders, replay.orders) == ([(1, False)], [(2, True)]), "each is applied once"


def test_of_two_requests_for_one_role_the_earlier_command_learns_of_the_later(run_dir: Path, watch: Watch) -> None:
    watch(rollout=(ObedientPool(1, state="starting"), (1, 4)))
    request_scale(run_dir, {"rollout": 2})
    request_scale(run_dir, {"rollout": 3})
    with pytest.raises(ConfigError, match=r"^rollout=2: a later request, rollout=3, has replaced this one"):
        wait_for(run_dir, {"rollout": 2}, deadline_s=60)


@pytest.mark.parametrize("ahead_s", [-3600.0, -40.0, 40.0, 3600.0])
def test_reader_with_another_clock_sees_the_run_alive(
    ahead_s: float, run_dir: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader is on another machine, so that it cannot ask for the process."""
    monkeypatch.setattr(scale, "REFRESH_S", 0.0)
    watch(rollout=(ObedientPool(1), (1, 4)))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + ahead_s * (threading.current_thread().name == "MainThread"))
    monkeypatch.setattr(scale_command, "is_alive", lambda process: None)
    view = read_workers(run_dir)
    assert view.pools["rollout"].num_up == 1


def test_reader_on_another_machine_notices_that_the_run_has_died(
    run_dir: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(rollout=(ObedientPool(1), (1, 4)))
    written = (run_dir / "workers.json").read_bytes()
    (run_dir / "left").mkdir()
    (run_dir / "left" / "config.json").write_text("{}")
    (run_dir / "left" / "workers.json").write_bytes(written)  # written just now, and never again
    monkeypatch.setattr(scale_command, "is_alive", lambda process: None)
    monkeypatch.setattr(scale_command, "SILENT_S", 0.3)
    with pytest.raises(ConfigError, match=r"the run has died: process \d+ on .* has not written its status for"):
        read_workers(run_dir / "left")


@pytest.mark.parametrize("content", [b"", b"{", b'{"run": 1}', b"\xff\xfe"])
def test_broken_request_is_removed_and_the_run_goes_on(content: bytes, run_dir: Path, watch: Watch) -> None:
    rollout = ObedientPool(1)
    running = watch(rollout=(rollout, (1, 4)))
    request_file(run_dir, "rollout").write_bytes(content)
    running.poll()
    assert not request_file(run_dir, "rollout").exists()
    (run_dir / "workers.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"workers\.json: cannot be read \(not what a run writes\)"):
        read_workers(run_dir)


@pytest.mark.parametrize(
    "texts", [["rollout"], ["rollout="], ["rollout=-1"], ["rollout=1", "rollout=2"], ["rollout=x"]]
)
def test_targets_that_cannot_be_read(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^command line: 'rollout.*; expected for example rollout=3 replay=2$"):
        parse_targets(texts)


def test_table_shows_every_worker(run_dir: Path, watch: Watch) -> None:
    watch(rollout=(ObedientPool(2), (1, 4)))
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(workers_table(read_workers(run_dir), now=65.0))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "rollout rollout-1 idle node 101 60 s" in lines
    assert "rollout: 2 of 2 run (range 1 to 4)" in lines


@pytest.mark.cluster
def test_command_scales_a_running_pool_from_another_process(
    run_dir: Path, watch: Watch, make_pool: Any, scene: Any
) -> None:
    config = PoolConfig(1, 4, 3, Timeouts(start_s=150, lease_s=60, heartbeat_s=20))
    pool = make_pool(config, num_cpus=0.1)
    pool.start()
    watch(rollout=(pool, (1, 2)))

    def scale(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "saga_dist.cli.main", "scale", str(run_dir), *arguments]
        environment = {**os.environ, "COLUMNS": "120"}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    grown = scale("rollout=2", "--wait", "200")
    assert grown.returncode == 0, grown.stderr
    assert "rollout: 2 of 2 run (range 1 to 2)" in grown.stdout
    for name, pid in scene.pids(pool).items():
        assert name in grown.stdout and str(pid) in grown.stdout
    refused = scale("rollout=3")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: rollout=3: out of range; expected 1 to 2; the range is rollout.min_workers to rollout.max_workers of "
        "the configuration\n"
    )
    shrunk = scale("rollout=1")
    assert shrunk.returncode == 0, shrunk.stderr
    assert scene.states(pool) == ["idle"]
