"""``saga-dist manifest``: what it prints, where it writes, how it refuses."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from saga_dist.deploy.render import render
from saga_dist.errors import ConfigError, OutputError

ROOT = Path(__file__).resolve().parents[2]
BIRDS = str(ROOT / "configs" / "birds.toml")
Documents = Callable[..., dict[str, dict[str, Any]]]


def test_the_default_is_a_job_named_after_the_file(documents: Documents) -> None:
    found = documents(BIRDS)
    assert set(found) == {"ConfigMap", "RayJob"}
    assert found["RayJob"]["metadata"]["name"] == "birds"
    assert found["ConfigMap"]["metadata"]["name"] == "birds-config"


def test_overrides_reach_the_pods(documents: Documents) -> None:
    found = documents(BIRDS, "run.steps=3", "rollout.workers=2", "--rollout-max", "5", "--namespace", "lab")
    tree = tomllib.loads(found["ConfigMap"]["data"]["run.toml"])
    assert (tree["run"]["steps"], tree["rollout"]["workers"]) == (3, 2)
    assert {document["metadata"]["namespace"] for document in found.values()} == {"lab"}
    rollout = found["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]
    assert (rollout["minReplicas"], rollout["replicas"], rollout["maxReplicas"]) == (2, 2, 5)


def test_node_labels(documents: Documents) -> None:
    spec = documents(BIRDS, "--learner-node", "gpu=h200", "--learner-node", "zone=a", "--rollout-node", "spot=true")
    learner, rollout = (
        group["template"]["spec"]["nodeSelector"]
        for group in spec["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    )
    assert (learner, rollout) == ({"gpu": "h200", "zone": "a"}, {"spot": "true"})


def test_header_says_what_it_adds_up_to(manifest: Callable[..., str]) -> None:
    text = manifest(
        BIRDS,
        "runtime.learner_num_gpus=0.7",
        "rollout.num_gpus=2",
        "rollout.tensor_parallel_size=2",
        "--rollout-max",
        "3",
    )
    lines = [line for line in text.splitlines() if line.startswith("#")]
    assert lines[1:] == [
        "#   learner: 1 pod with GPU 1 (0.7 asked for), CPU 1, memory 64 + 5 GiB of /dev/shm; takes 1 learner",
        "#   rollout: 1 to 3 pods with GPU 2, CPU 1, memory 128 + 6 GiB of /dev/shm; takes 1 rollout",
        "#   together: GPU 3 to 7, and the head without one",
    ]


def test_the_file_is_what_is_printed_otherwise(manifest: Callable[..., str], tmp_path: Path) -> None:
    target = tmp_path / "job.yaml"
    assert manifest(BIRDS, "--out", str(target)) == ""
    assert target.read_text() == manifest(BIRDS)
    with pytest.raises(OutputError, match=r"cannot be written \(No such file or directory\); .* choose another --out"):
        manifest(BIRDS, "--out", str(tmp_path / "missing" / "job.yaml"))


def test_a_label_without_a_value(manifest: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="command line: --rollout-node 'spot'; expected KEY=VALUE"):
        manifest(BIRDS, "--rollout-node", "spot")


@pytest.mark.parametrize(
    "text", ["a: b", "yes", "0123", "1e3", "line\nline\n", " leading", "~", "#x", "ü", "trailing \nx"]
)
def test_texts_survive_yaml(text: str) -> None:
    assert list(yaml.safe_load_all(render([{"a": text}, {"b": [text, {text: 1}]}], ["header"]))) == [
        {"a": text},
        {"b": [text, {text: 1}]},
    ]


def test_people_can_read_it(manifest: Callable[..., str]) -> None:
    text = manifest(BIRDS)
    assert '  run.toml: |\n    [run]\n    steps = 40\n\n    [data]\n    layout = "birds"\n' in text
    same = {"a": 1}
    assert render([{"x": same, "y": same}]) == "x:\n  a: 1\ny:\n  a: 1\n"  # no anchors, no aliases


def test_a_mistake_is_one_line_and_exit_2() -> None:
    command = [
        sys.executable,
        "-m",
        "saga_dist.cli.main",
        "manifest",
        BIRDS,
        "--rollout-min",
        "4",
        "--rollout-max",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "error: command line: --rollout-min = 4 is more than --rollout-max = 2; lower it\n"
    assert done.stdout == ""


def test_neither_ray_nor_torch_is_loaded() -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['saga-dist', 'manifest', {BIRDS!r}, '--out', '/dev/null/x']\n"
        "from saga_dist.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "print(code, sorted({'ray', 'torch', 'vllm', 'transformers', 'pyarrow'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "2 []", done.stderr
