"""The file of Ray's cluster launcher: valid by Ray's own schema and preparation, token everywhere, roles in place."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from saga_dist.config import RunConfig
from saga_dist.deploy.launcher import launcher
from saga_dist.deploy.options import make_options
from saga_dist.errors import ConfigError

PaperRun = Callable[..., RunConfig]
ROOT = Path(__file__).resolve().parents[2]
MACHINES = {"head_ip": "10.0.0.1", "worker_ips": ("10.0.0.2", "10.0.0.3")}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """Returns the file as `ray up` has it after its own checks."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    ready = prepare_config(copy.deepcopy(cluster))
    validate_config(ready)
    return ready


def starts(cluster: dict[str, Any]) -> tuple[list[str], list[str]]:
    return tuple(shlex.split(cluster[f"{side}_start_ray_commands"][-1]) for side in ("head", "worker"))  # type: ignore[return-value]


def resources(words: list[str]) -> dict[str, int]:
    (option,) = [word for word in words if word.startswith("--resources=")]
    return json.loads(option.removeprefix("--resources="))


def test_ray_takes_it(paper_run: PaperRun, schema: dict[str, Any]) -> None:
    cluster = launcher(paper_run(rollout={"workers": 2}), make_options(name="saga-test", **MACHINES))
    jsonschema.validate(cluster, schema)
    ready = prepared(cluster)
    assert ready["available_node_types"]["local.cluster.node"]["max_workers"] == 2
    assert ready["head_start_ray_commands"] == cluster["head_start_ray_commands"]


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "launcher").glob("*.yaml")), ids=lambda path: path.name)
def test_ray_takes_the_shipped_file(path: Path, schema: dict[str, Any]) -> None:
    cluster = yaml.safe_load(path.read_text())
    jsonschema.validate(cluster, schema)
    assert prepared(cluster)["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@pytest.mark.parametrize("path", ["workers", "provider", "docker", "auth"])
def test_a_typo_is_caught(paper_run: PaperRun, schema: dict[str, Any], path: str) -> None:
    cluster = launcher(paper_run(), make_options(**MACHINES))
    if path == "workers":
        cluster["min_worker"] = 1
    elif path == "provider":
        del cluster["provider"]["type"]
    else:
        cluster[path]["imge"] = "x"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster, schema)


def test_authentication_is_on_for_both_sides_and_in_the_container(paper_run: PaperRun) -> None:
    cluster = launcher(paper_run(), make_options(**MACHINES))
    for words in starts(cluster):
        assert "RAY_AUTH_MODE=token" in words[: words.index("ray")]
    assert "--env=RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert list(cluster["file_mounts"]) == ["~/.ray/auth_token"]
    assert "--dashboard-host=127.0.0.1" in starts(cluster)[0]


def test_roles_have_their_machines(paper_run: PaperRun) -> None:
    config = paper_run(rollout={"workers": 4}, replay={"workers": 3})
    head, worker = starts(launcher(config, make_options(rollout_workers_per_pod=2, **MACHINES)))
    assert resources(head) == {"learner": 1}
    assert resources(worker) == {"rollout": 2, "replay": 2}  # 3 replay workers on 2 machines
    several = paper_run(runtime={"learner_processes": 2}, replay={"workers": 1})
    assert resources(starts(launcher(several, make_options(**MACHINES)))[0]) == {"learner": 2}
    alone = launcher(config, make_options(head_ip="10.0.0.1"))
    assert resources(starts(alone)[0]) == {"learner": 1, "rollout": 4, "replay": 3}
    assert alone["max_workers"] == 0


def test_a_run_on_verdicts_has_no_machines_for_rollouts(paper_run: PaperRun) -> None:
    config = paper_run(objective={"signal": "verdict", "lambda_kl": 0.0}, replay={"workers": 2})
    head, worker = starts(launcher(config, make_options(**MACHINES)))
    assert (resources(head), resources(worker)) == ({"learner": 1}, {"replay": 1})


def test_time_to_write_a_checkpoint(paper_run: PaperRun) -> None:
    cluster = launcher(paper_run(), make_options(grace_s=240, **MACHINES))
    assert "RAY_JOB_STOP_WAIT_TIME_S=240" in starts(cluster)[0]


def test_volumes_are_read_only_but_for_the_runs(paper_run: PaperRun) -> None:
    options = launcher(paper_run(), make_options(**MACHINES))["docker"]["run_options"]
    volumes = {option for option in options if option.startswith("--volume=")}
    assert volumes == {"--volume=/weights:/weights:ro", "--volume=/data:/data:ro", "--volume=/runs:/runs"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "command line: --head-ip is missing; name the machine of head and learner"),
        (
            {"head_ip": "10.0.0.1", "worker_ips": ("10.0.0.2", "10.0.0.1")},
            "command line: 10.0.0.1 is named twice; name every machine once",
        ),
        (
            {"head_ip": "10.0.0.1", "worker_ips": ("10.0.0.2",)},
            "command line: rollout.workers = 3 on 1 machines of 1; add --worker-ip, or raise "
            "--rollout-workers-per-pod to 3",
        ),
    ],
)
def test_impossible_requests(paper_run: PaperRun, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        launcher(paper_run(rollout={"workers": 3}), make_options(**options))
    assert str(caught.value) == message
