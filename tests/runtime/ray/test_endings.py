"""The end of workers: asked to close, then killed, and nothing of theirs is left, whatever ended them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest
import ray

from saga_dist.config import RunConfig, parse_config
from saga_dist.errors import DeadlineExceeded, Interrupted
from saga_dist.runtime.build import build_rollout_worker
from saga_dist.runtime.leftovers import NAME
from saga_dist.runtime.ray import endings
from saga_dist.runtime.ray.actors import Factories
from saga_dist.runtime.ray.fake_workers import FakeRolloutWorker, fake_factories
from saga_dist.runtime.ray.fault_plan import FaultPlan
from saga_dist.runtime.ray.runtime import RayRuntime
from saga_dist.runtime.stopping import StartAborted, StopRequest
from saga_dist.utils import waiting
from saga_dist.utils.processes import ProcessId, identify, is_alive
from saga_dist.utils.shared_memory import FOLDER

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[3]


class Hoarder(FakeRolloutWorker):
    """Rollout worker with shared memory and a child process, as an engine of several shards has them."""

    def __init__(self, config: RunConfig, folder: str) -> None:
        super().__init__(config, FaultPlan())
        self._folder = Path(folder)
        self._memory = SharedMemory(create=True, size=4096)
        resource_tracker.unregister(self._memory._name, "shared_memory")  # type: ignore[attr-defined]
        self._child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        (self._folder / f"{os.getpid()}.has").write_text(f"{self._memory.name} {self._child.pid}")

    def close(self) -> None:
        """Removes both."""
        self._memory.close()
        self._memory.unlink()
        self._child.kill()
        self._child.wait()
        (self._folder / f"{os.getpid()}.closed").touch()


def recorded(home: Path) -> list[dict[str, Any]]:
    """What a run has recorded of its processes."""
    traces: list[dict[str, Any]] = json.loads((home / NAME).read_text())
    return traces


class Hoard:
    """What the hoarders of a test have and had."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, tuple[Path, ProcessId | None]] = {}

    def look(self) -> None:
        """Remembers the memory and the child of every worker so far."""
        for file in self._folder.glob("*.has"):
            memory, child = file.read_text().split()
            self._seen.setdefault(file.stem, (FOLDER / memory, identify(int(child))))

    @property
    def left(self) -> list[str]:
        """What is still there."""
        memory = [path.name for path, _ in self._seen.values() if path.exists()]
        return memory + [f"process {child.pid}" for _, child in self._seen.values() if child and is_alive(child)]

    @property
    def num_closed(self) -> int:
        """Workers that were asked to close and did."""
        return len(list(self._folder.glob("*.closed")))


def config(**rollout: Any) -> RunConfig:
    return parse_config(
        {
            "data": {"layout": "birds", "image_size": 80},
            "rollout": {"workers": 1, "num_cpus": 0.5, "start_deadline_s": 150.0, **rollout},
            "runtime": {"learner_num_cpus": 0.5, "threads": 1, "heartbeat_s": 5.0},
        },
        where="test",
    )


@pytest.fixture
def hoard(tmp_path: Path) -> Hoard:
    return Hoard(tmp_path)


Make = Callable[..., RayRuntime]


@pytest.fixture
def make(ray_cluster: dict[str, str], tmp_path: Path) -> Iterator[Make]:
    """Makes a runtime with hoarding rollout workers that are up; closed after the test."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    made: list[RayRuntime] = []

    def runtime(**rollout: Any) -> RayRuntime:
        plain = fake_factories()
        factories = Factories(plain.learner, partial(Hoarder, folder=str(tmp_path)), plain.replay)
        made.append(RayRuntime(config(**rollout), factories, home=tmp_path))
        return made[-1]

    yield runtime
    for each in made:
        each.close()


def until_up(runtime: RayRuntime, number: int, scene: Any) -> dict[str, int]:
    scene.until(lambda: len(runtime.rollouts.workers()) == number)
    return scene.pids(runtime.rollouts)


def test_workers_are_asked_to_close_at_the_end(make: Make, hoard: Hoard, scene: Any, tmp_path: Path) -> None:
    runtime = make(workers=2)
    until_up(runtime, 2, scene)
    hoard.look()
    assert len(hoard.left) == 4
    assert (tmp_path / NAME).exists()
    runtime.close()
    assert (hoard.left, hoard.num_closed) == ([], 2)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_worker_that_leaves_is_asked_to_close(at_once: bool, make: Make, hoard: Hoard, scene: Any) -> None:
    runtime = make(workers=2)
    until_up(runtime, 2, scene)
    hoard.look()
    runtime.rollouts.resize(1, at_once=at_once)
    scene.until(lambda: hoard.num_closed == 1)
    assert len(hoard.left) == 2, "the other one works on"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_leaves_nothing(
    number: int, make: Make, hoard: Hoard, scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "CLOSE_S", 1.0)
    runtime = make()
    pid = until_up(runtime, 1, scene)["rollout-0"]
    hoard.look()
    os.kill(pid, number)
    scene.until(lambda: runtime.rollouts.workers() and scene.pids(runtime.rollouts)["rollout-0"] != pid)
    hoard.look()
    runtime.close()
    assert (hoard.left, hoard.num_closed) == ([], 1), "its successor closed by itself"


def test_a_worker_that_hangs_at_the_end_is_killed(
    make: Make, hoard: Hoard, scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "CLOSE_S", 1.0)
    runtime = make()
    os.kill(until_up(runtime, 1, scene)["rollout-0"], signal.SIGSTOP)
    hoard.look()
    runtime.close()
    assert (hoard.left, hoard.num_closed) == ([], 0)


@pytest.mark.vllm
@pytest.mark.slow  # the shards of an engine are processes that import vLLM each
def test_an_engine_of_two_shards_leaves_no_shared_memory(
    ray_cluster: dict[str, str], tiny_checkpoint: Path, scene: Any, tmp_path: Path
) -> None:
    tree = {
        "data": {"layout": "birds", "image_size": 80},
        "prompt": {"vocabulary": "standin_birds"},
        "model": {"path": str(tiny_checkpoint), "dtype": "float32"},
        "rollout": {"tensor_parallel_size": 2, "max_model_len": 256, "groups_per_lease": 1},
        "runtime": {"learner_num_cpus": 0.5, "threads": 1, "heartbeat_s": 60.0},
    }
    plain = fake_factories()
    factories = Factories(plain.learner, build_rollout_worker, plain.replay)
    with RayRuntime(parse_config(tree, where="test"), factories, home=tmp_path) as runtime:
        scene.until(lambda: runtime.rollouts.workers(), seconds=400)
        shared = {FOLDER / file["name"] for trace in recorded(tmp_path) for file in trace["files"]}
        assert len(shared) >= 4
        assert all(path.exists() for path in shared)
    assert not [path for path in shared if path.exists()]
    assert not (tmp_path / NAME).exists()


# ---------------------------------------------------------------------- a cluster without free resources


class Other:
    """An actor of somebody else."""

    def is_up(self) -> bool:
        """Returns True."""
        return True


@pytest.fixture
def take(ray_cluster: dict[str, str]) -> Iterator[Callable[[float], None]]:
    """Takes CPUs of the cluster until the end of the test."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    others: list[Any] = []

    def take_cpus(number: float) -> None:
        others.append(ray.remote(num_cpus=number)(Other).remote())
        assert ray.get(others[-1].is_up.remote(), timeout=150)

    yield take_cpus
    for other in others:
        ray.kill(other)


@pytest.fixture
def busy(take: Callable[[float], None]) -> None:
    """Somebody else has taken all 4 CPUs of the cluster."""
    take(4.0)


NEED = "1 CPUs needed (1 learner x 0.5 + 1 rollout x 0.5), 4 there, 0 free"


def test_a_busy_cluster_is_named_while_waiting_and_in_the_error(
    busy: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "FIRST_NOTICE_S", 1.0)
    caplog.set_level("INFO", "saga_dist")
    # The rollout worker gives up at the same moment, and may no longer wait when the learner's error is made.
    with pytest.raises(
        DeadlineExceeded, match=r"^learner: not started within 5 s; .* CPUs needed \(1 learner .*0 free$"
    ):
        RayRuntime(config(start_deadline_s=5.0), fake_factories())
    assert f"so far: {NEED}" in caplog.text


def test_a_stop_ends_the_wait_for_resources(busy: None) -> None:
    stop = StopRequest()

    def receive() -> None:
        time.sleep(2.0)
        with stop.deferred():  # a handler would run in the main thread, in which Ray waits
            stop.receive(signal.SIGTERM)

    threading.Thread(target=receive).start()
    with pytest.raises(StartAborted):
        RayRuntime(config(), fake_factories(), stop=stop)


def test_a_stop_while_a_lost_learner_is_replaced_ends_the_run(take: Callable[[float], None]) -> None:
    stop = StopRequest()
    with RayRuntime(config(), fake_factories(), stop=stop) as runtime:
        stop.steps_begin()
        take(3.0)
        stop.receive(signal.SIGTERM)
        with pytest.raises(Interrupted, match=r"^stopped while a learner was starting; the same command resumes"):
            runtime.restart_learner()


def test_sigterm_ends_the_command_that_waits_for_resources(
    busy: None, ray_cluster: dict[str, str], tmp_path: Path, tiny_checkpoint: Path, write_tiny_config: Any
) -> None:
    runtime = {"kind": "ray", "address": ray_cluster["gcs_address"]}
    path = write_tiny_config(tmp_path / "run.toml", tiny_checkpoint, runtime=runtime)
    command = [sys.executable, "-m", "saga_dist", "train", str(path), "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if "0 free" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 3, said
    assert "waiting for the learner" in said
    assert said.splitlines()[-1] == "error: stopped before the first step; the same command starts again"
    assert "Exception ignored" not in said


# ---------------------------------------------------------------------- a driver with a Ray of its own

DRIVER = """
import os, sys
from pathlib import Path
os.environ.pop("RAY_AUTH_MODE", None)
from saga_dist.config import parse_config
from saga_dist.runtime.ray.fake_workers import fake_factories
from saga_dist.runtime.ray.runtime import RayRuntime
config = parse_config({"data": {"layout": "birds", "image_size": 80}, "runtime": {"threads": 1}}, where="test")
with RayRuntime(config, fake_factories(), home=Path(sys.argv[1])):
    print("up", flush=True)
    sys.stdin.readline()
"""


def start_driver(home: Path) -> tuple[subprocess.Popen[str], Path]:
    """Starts a driver and waits until its learner is up; returns it and its Ray's temporary folder."""
    command = [sys.executable, "-c", DRIVER, str(home)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    (folder,) = {trace["folder"] for trace in recorded(home)} - {""}
    return process, Path(folder)


def test_the_next_start_removes_the_ray_of_a_killed_driver(tmp_path: Path) -> None:
    killed, folder = start_driver(tmp_path)
    killed.kill()
    killed.wait()
    for pipe in (killed.stdin, killed.stdout):  # its Ray's processes may hold the other end
        assert pipe is not None
        pipe.close()
    assert folder.is_dir()
    again, its_own = start_driver(tmp_path)
    assert (folder.exists(), its_own.exists()) == (False, True)
    again.communicate("\n", timeout=120)
    assert again.returncode == 0
    assert not its_own.exists()
    assert not (tmp_path / NAME).exists()
