"""A real ``ray job submit`` to a head node of the test's own, with token authentication; exactly that head is ended."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from saga_dist.wire import read_recording

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[3]
RAY, SAGA_DIST = (Path(sys.executable).parent / name for name in ("ray", "saga-dist"))
DEMO = ROOT / "saga_dist" / "standin" / "demo.toml"
EXAMPLES = ROOT / "docs" / "examples"


@dataclass(frozen=True)
class Head:
    """A running head node."""

    gcs: str
    dashboard: str
    agent: str
    environment: dict[str, str]


def free_ports(number: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def answers(head: Head) -> bool:
    """True when the job server behind the dashboard is up, and the agent that starts its jobs."""
    authorization = {"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    try:
        for url in (f"{head.dashboard}/api/jobs/", f"{head.agent}/api/local_raylet_healthz"):
            with urllib.request.urlopen(urllib.request.Request(url, headers=authorization), timeout=5) as response:
                if response.status != 200:
                    return False
    except (urllib.error.URLError, OSError):
        return False
    return True


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head node with two CPUs and its own token."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: sockets lie below it
    gcs, dashboard, client, agent_grpc, agent_http, metrics = free_ports(6)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "TMPDIR": folder,  # a dashboard that is killed leaves a socket there
    }
    options = {
        "node-ip-address": "127.0.0.1",
        "port": gcs,
        "num-cpus": 2,
        "num-gpus": 0,
        "object-store-memory": 100_000_000,
        "temp-dir": folder,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "ray-client-server-port": client,
        "metrics-export-port": metrics,
        "dashboard-agent-grpc-port": agent_grpc,
        "dashboard-agent-listen-port": agent_http,
    }
    command = [str(RAY), "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())]
    log = Path(folder) / "head.log"
    dashboard_url, agent_url = (f"http://127.0.0.1:{port}" for port in (dashboard, agent_http))
    running = Head(f"127.0.0.1:{gcs}", dashboard_url, agent_url, environment)
    process = start(command, environment, log)
    try:
        deadline = time.monotonic() + 240
        while not answers(running):
            if process.poll() is not None and "timed out" in log.read_text():  # a busy machine: once more, to the end
                end(process)
                process = start(command, environment, log)
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield running
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def start(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own."""
    with log.open("wb") as output:
        return subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and its session: what it started and nothing else."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def submit(head: Head, *entrypoint: str, working_dir: Path | None = None) -> subprocess.CompletedProcess[str]:
    options = [] if working_dir is None else [f"--working-dir={working_dir}"]
    return subprocess.run(
        [str(RAY), "job", "submit", f"--address={head.dashboard}", *options, "--", *entrypoint],
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=400,
        cwd=ROOT,
    )


SMALL = (
    "run.steps=2",
    "evaluation.every_steps=2",
    "evaluation.verdict_pairs=0",
    "data.batch_size=16",
    "data.birds.val_images_per_class=4",
    "data.birds.test_images_per_class=4",
    "data.birds.probe_images=0",
    "rollout.engine=transformers",
    "rollout.pairs_per_batch=4",
    "rollout.group_size=8",
)


def test_job_trains_in_the_cluster_it_was_submitted_to(head: Head, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = submit(head, str(SAGA_DIST), "train", str(DEMO), *SMALL, "--run-dir", str(run), "--verbose")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "succeeded" in said
    assert "Connecting to existing Ray cluster" in said, "not to a private Ray"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows if "loss/grpo" in row] == [1, 2]
    assert all(row["rollout_pool/leases"] >= 1 for row in rows if "loss/grpo" in row)
    assert [method["name"] for method in json.loads((run / "results.json").read_text("utf-8"))["methods"]] == [
        "pre-trained",
        "trained",
    ]


def test_job_brings_its_own_reward_and_metric_loss_along(head: Head, tmp_path: Path) -> None:
    """Modules and configuration lie in the job's working directory and nowhere else that a process would look."""
    job, run = tmp_path / "job", tmp_path / "run"
    job.mkdir()
    for name in ("own_reward", "own_metric_loss"):  # other names: an installed module would hide a missing one
        shutil.copy(EXAMPLES / f"{name}.py", job / f"{name}_of_this_job.py")
    shutil.copy(DEMO, job / "run.toml")
    own = (
        "objective.reward=own_reward_of_this_job:partial_credit",
        "objective.metric_loss=own_metric_loss_of_this_job:CosFace",
        "objective.metric_params={margin = 0.2, scale = 16}",
        "rollout.workers=1",
    )
    train = (str(SAGA_DIST), "train", "run.toml", *SMALL, *own, "--run-dir", str(run))
    done = submit(head, *train, working_dir=job)
    assert done.returncode == 0, done.stdout + done.stderr
    groups = [group for step in range(2) for group in read_recording(run / "rollouts" / f"step_{step:06d}.arrow")]
    values = {round(float(value), 6) for group in groups for value in group.rewards_G}
    assert values <= {0.0, 0.2, 1.0, 1.2}
    assert values & {0.2, 1.2}, "the rollout worker scored with the job's own reward"
    state = load_file(run / "checkpoints" / "step_00000002" / "learner.safetensors")
    assert "metric_loss.loss.proxies_CE" in state, "the learner trained the job's own metric loss"


@pytest.mark.parametrize("place", [(), ("--run-dir", "mine")], ids=["default", "relative"])
def test_a_run_directory_in_the_copy_of_the_working_directory_is_refused(
    head: Head, tmp_path: Path, place: tuple[str, ...]
) -> None:
    """Ray removes the copy with the job, and another submission would start again at step 1 in another one."""
    job = tmp_path / "job"
    job.mkdir()
    shutil.copy(DEMO, job / "run.toml")
    done = submit(head, str(SAGA_DIST), "train", "run.toml", *SMALL, *place, working_dir=job)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in said
    (line,) = {line.strip() for line in said.splitlines() if line.startswith("error: ")}
    assert "is in Ray's copy of the job's working directory, which goes with the job" in line
    assert "give --run-dir as an absolute path" in line
    assert "exit code 2" in said


def test_a_module_that_a_node_lacks_is_one_line_with_the_node(head: Head, tmp_path: Path) -> None:
    own = ("objective.reward=own_reward_left_at_home:partial_credit", "rollout.workers=1")
    done = submit(head, str(SAGA_DIST), "train", str(DEMO), *SMALL, *own, "--run-dir", str(tmp_path / "run"))
    said = done.stdout + done.stderr
    assert done.returncode != 0
    (line,) = {line.strip() for line in said.splitlines() if "no module" in line}  # Ray prints the end of a log again
    assert f"no module 'own_reward_left_at_home' on node {platform.node()}; install the package on every node" in line
    assert "Traceback" not in said
    assert "exit code 2" in said


@pytest.mark.slow  # Ray takes 20 seconds to give up
def test_wrong_token_is_one_line_and_not_a_silent_wait(head: Head) -> None:
    code = (
        "from saga_dist.runtime.ray.session import RaySession\n"
        "from saga_dist.config import parse_config\n"
        "from saga_dist.errors import ConfigError\n"
        "try:\n"
        "    data = {'layout': 'birds', 'image_size': 80}\n"
        f"    RaySession(parse_config({{'data': data, 'runtime': {{'address': '{head.gcs}'}}}}, where='test'))\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**head.environment, "RAY_AUTH_TOKEN": "0" * 64},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    line = done.stdout.splitlines()[-1]
    assert line.startswith(f"runtime.address = '{head.gcs}': Ray refused the connection; check"), done.stderr
