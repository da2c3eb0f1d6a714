"""A real ``ray job submit`` to a head node of the test's own, with token authentication; exactly that head is ended."""

from __future__ import annotations

import contextlib
import json
import os
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

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[3]
RAY, SAGA_DIST = (Path(sys.executable).parent / name for name in ("ray", "saga-dist"))
DEMO = ROOT / "saga_dist" / "standin" / "demo.toml"


@dataclass(frozen=True)
class Head:
    """A running head node."""

    gcs: str
    dashboard: str
    environment: dict[str, str]


def free_ports(number: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def answers(head: Head) -> bool:
    """True when the job server behind the dashboard is up."""
    request = urllib.request.Request(
        f"{head.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


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
    running = Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment)
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


def submit(head: Head, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(RAY), "job", "submit", f"--address={head.dashboard}", "--", *entrypoint],
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
    )


def test_job_trains_in_the_cluster_it_was_submitted_to(head: Head, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = [
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
    ]
    done = submit(head, str(SAGA_DIST), "train", str(DEMO), *small, "--run-dir", str(run), "--verbose")
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


@pytest.mark.slow  # Ray takes 20 seconds to give up
def test_wrong_token_is_one_line_and_not_a_silent_wait(head: Head) -> None:
    code = (
        "from saga_dist.runtime.ray.session import Session\n"
        "from saga_dist.config import parse_config\n"
        "from saga_dist.errors import ConfigError\n"
        "try:\n"
        "    data = {'layout': 'birds', 'image_size': 80}\n"
        f"    Session(parse_config({{'data': data, 'runtime': {{'address': '{head.gcs}'}}}}, where='test'))\n"
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
    assert line.startswith(f"runtime.address = '{head.gcs}': Ray does not let us in; check"), done.stderr
