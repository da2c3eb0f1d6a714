"""The files below deploy/ are what the generator prints today, and valid; what they name exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from saga_dist.deploy.options import DeployOptions
from saga_dist.deploy.pods import PRIORITY_LEARNER, PRIORITY_ROLLOUT
from saga_dist.deploy.render import MADE_WITH

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = sorted((ROOT / "deploy" / "kuberay").glob("*.yaml"))
GENERATED = [path for path in sorted((ROOT / "deploy").rglob("*.yaml")) if path.read_text().startswith(MADE_WITH)]


def test_there_is_one_for_each_way_of_running() -> None:
    assert {path.name for path in GENERATED} >= {
        "birds-rayjob.yaml",
        "cub-rayjob.yaml",
        "cub-one-gpu-rayjob.yaml",
        "lab-raycluster.yaml",
        "cub.yaml",
    }
    assert {path.name for path in KUBERNETES if path not in GENERATED} == {
        "network-policy.yaml",
        "priorities.yaml",
        "volumes.yaml",
    }


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_its_own_command_prints_it_again(
    path: Path, manifest: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    command = text.splitlines()[0].removeprefix(MADE_WITH)
    again = manifest(*shlex.split(command))
    assert again == text, f"run: saga-dist manifest {command} --out {path.relative_to(ROOT)}"


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_every_document_is_valid(path: Path, mistakes: Callable[[dict[str, Any]], list[str]]) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    assert {document["metadata"]["name"]: mistakes(document) for document in documents} == {
        document["metadata"]["name"]: [] for document in documents
    }


def test_names_do_not_collide() -> None:
    names = [
        (document["kind"], document["metadata"]["name"])
        for path in KUBERNETES
        for document in yaml.safe_load_all(path.read_text())
    ]
    assert len(names) == len(set(names))


def test_priorities_and_claims_that_manifests_name_are_shipped(paper_run: Callable[..., Any]) -> None:
    priorities = {
        d["metadata"]["name"]: d for d in yaml.safe_load_all((KUBERNETES[0].parent / "priorities.yaml").read_text())
    }
    claims = {d["metadata"]["name"]: d for d in yaml.safe_load_all((KUBERNETES[0].parent / "volumes.yaml").read_text())}
    for path in GENERATED:
        text = path.read_text()
        used = [line.split(":")[1].strip() for line in text.splitlines() if "priorityClassName:" in line]
        assert set(used) <= priorities.keys()
        used = [line.split(":")[1].strip() for line in text.splitlines() if "claimName:" in line]
        assert set(used) <= claims.keys()
    assert priorities[PRIORITY_ROLLOUT]["value"] < priorities[PRIORITY_LEARNER]["value"]
    assert priorities[PRIORITY_ROLLOUT]["preemptionPolicy"] == "Never"
    assert claims["saga-runs"]["spec"]["accessModes"] == ["ReadWriteMany"]  # head and learner are two pods


def test_network_policy_meets_the_pods_of_the_generator() -> None:
    policy = yaml.safe_load((ROOT / "deploy" / "kuberay" / "network-policy.yaml").read_text())
    wanted = policy["spec"]["podSelector"]["matchLabels"].items()
    job = list(yaml.safe_load_all((ROOT / "deploy" / "kuberay" / "cub-rayjob.yaml").read_text()))[-1]
    cluster = job["spec"]["rayClusterSpec"]
    for template in [cluster["headGroupSpec"]["template"], *(g["template"] for g in cluster["workerGroupSpecs"])]:
        assert wanted <= template["metadata"]["labels"].items()
    ports = {port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", [])}
    declared = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    assert ports <= {port["containerPort"] for port in declared}


def test_no_secret_is_shipped() -> None:
    for path in (ROOT / "deploy").rglob("*"):
        if path.is_file():
            assert "kind: Secret" not in path.read_text()


def test_a_typo_in_a_plain_kind_is_caught(mistakes: Callable[[dict[str, Any]], list[str]]) -> None:
    first = next(yaml.safe_load_all((KUBERNETES[0].parent / "priorities.yaml").read_text()))
    assert mistakes(first | {"preemptionPolcy": "Never"})
    assert mistakes({**first, "value": "high"})


def readme_commands(start: str) -> list[str]:
    """Commands in the code blocks of deploy/README.md, continuation lines joined, comments dropped."""
    blocks = (ROOT / "deploy" / "README.md").read_text().split("```")[1::2]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip().startswith(start)]


def test_commands_of_the_readme_work(manifest: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = readme_commands("saga-dist manifest")
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command)[2:]
        assert words[-2] == "--out"
        assert manifest(*words[:-2]).startswith(MADE_WITH)


def test_files_and_options_that_the_readme_names_exist(manifest: Callable[..., str]) -> None:
    applied = [command.split()[3] for command in readme_commands("kubectl apply -f")]
    assert len(applied) >= 5
    assert [path for path in applied if not (ROOT / path).is_file()] == []
    text = (ROOT / "deploy" / "README.md").read_text()
    named = set(re.findall(r"`(--[a-z]+-[a-z-]+)", text)) - {"--shm-size", "--working-dir", "--runtime-env-json"}
    known = {f"--{name.replace('_', '-')}" for name in DeployOptions.model_fields} | {"--run-dir", "--dry-run"}
    assert named
    assert named <= known
