"""Joining and starting Ray: what is started is private and goes away; what cannot work says so in one line."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from saga_dist.config import RunConfig, parse_config
from saga_dist.errors import ConfigError
from saga_dist.runtime.ray import session
from saga_dist.runtime.ray.resources import ResourceRequest, missing_resources, resource_requests
from saga_dist.runtime.ray.session import RaySession

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[3]


def config(**sections: dict[str, object]) -> RunConfig:
    return parse_config({"data": {"layout": "birds", "image_size": 80}, **sections}, where="test")


def test_needs_count_the_roles_that_will_run() -> None:
    full = config(
        rollout={"workers": 3, "num_cpus": 2.0, "num_gpus": 1.0},
        replay={"workers": 2, "num_gpus": 0.5},
        runtime={"learner_num_gpus": 1.0},
    )
    assert resource_requests(full) == [
        ResourceRequest("learner", 1, 1.0, 1.0),
        ResourceRequest("rollout", 3, 2.0, 1.0),
        ResourceRequest("replay", 2, 1.0, 0.5),
    ]
    assert [need.role for need in resource_requests(config())] == ["learner", "rollout"]
    assert [need.role for need in resource_requests(config(objective={"lambda_lm": 0.0, "lambda_kl": 0.0}))] == [
        "learner"
    ]


def test_lacking_says_what_is_needed_and_what_is_there() -> None:
    asked = [ResourceRequest("learner", 1, 1.0, 1.0), ResourceRequest("rollout", 3, 2.0, 1.0)]
    assert missing_resources(asked, {"CPU": 7.0, "GPU": 4.0}) == ""
    assert missing_resources(asked, {"CPU": 7.0}) == "4 GPUs needed (1 learner x 1 + 3 rollout x 1), 0 there"
    assert (
        missing_resources(asked, {"CPU": 6.0, "GPU": 4.0}) == "7 CPUs needed (1 learner x 1 + 3 rollout x 2), 6 there"
    )


def test_pinned_roles_need_the_resource_of_their_pods() -> None:
    pinned = resource_requests(config(runtime={"pin_roles": True}, rollout={"workers": 2}))
    offered = {"CPU": 9.0, "GPU": 0.0, "learner": 1.0}
    assert missing_resources(pinned, {**offered, "rollout": 2.0}) == ""
    assert missing_resources(pinned, {**offered, "rollout": 1.0}) == "2 of the resource 'rollout' needed, 1 there"


@pytest.fixture
def unconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)


def test_too_few_local_cpus_is_said_before_anything_starts(unconnected: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError) as caught:
        RaySession(config(rollout={"workers": 2}))
    assert str(caught.value) == (
        "runtime.local_cpus = 2: 3 CPUs needed (1 learner x 1 + 2 rollout x 1), 2 there; raise runtime.local_cpus, "
        "or lower rollout.workers, replay.workers or their num_cpus"
    )


def test_address_where_nobody_answers(unconnected: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # held, for nobody else to get it, and not listening
        port = free.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^runtime.address = '127.0.0.1:{port}': no connection to this address"):
            RaySession(config(runtime={"address": f"127.0.0.1:{port}"}))


def test_address_that_is_none(unconnected: None) -> None:
    with pytest.raises(ConfigError, match=r"^runtime.address = 'head': not an address; expected \"host:port\""):
        RaySession(config(runtime={"address": "head"}))


PRIVATE = """
import json, os, signal, sys
from pathlib import Path
for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
    os.environ.pop(name, None)
os.environ["HOME"] = sys.argv[1]
from saga_dist.runtime.ray.session import RaySession
from saga_dist.config import parse_config
import ray
mine = lambda number, frame: None
signal.signal(signal.SIGTERM, mine)
config = parse_config({"data": {"layout": "birds", "image_size": 80}}, where="test")
session = RaySession(config)
folder = session._folder
@ray.remote
def inside():
    return os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"])
found = {
    "cpus": ray.cluster_resources()["CPU"],
    "inside": ray.get(inside.remote(), timeout=150),
    "handler": signal.getsignal(signal.SIGTERM) is mine,
    "again": RaySession(config).missing(),
    "folder": folder.is_dir(),
}
session.close()
session.close()
found |= {"after": folder.exists(), "connected": ray.is_initialized(), "home": os.listdir(sys.argv[1])}
print(json.dumps(found))
"""


def run_private_ray(home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PRIVATE, str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=ROOT, check=False)


def test_private_ray_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run_private_ray(tmp_path)
    if "node timed out" in done.stderr:  # Ray gives it 30 s, which a busy machine may not need twice
        done = run_private_ray(tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "cpus": 2.0,
        "inside": ["token", 64],
        "handler": True,
        "again": "",
        "folder": True,
        "after": False,
        "connected": False,
        "home": [],
    }
