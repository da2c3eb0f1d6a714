"""Workers that request no GPU on a machine with GPUs share its first one: a line says so before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saga_dist.config import RunConfig, parse_config
from saga_dist.errors import ConfigError
from saga_dist.runtime import gpu_requests
from saga_dist.runtime.gpu_requests import gpu_request_warnings, num_local_gpus
from saga_dist.runtime.preflight import describe


def config_of(**sections: dict[str, Any]) -> RunConfig:
    tree = {"data": {"layout": "birds", "image_size": 80}, "model": {"path": "standin"}, "objective": {"kl_layer": 1}}
    return parse_config(
        {**tree, **{name: tree.get(name, {}) | section for name, section in sections.items()}}, where="test"
    )


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two GPUs, as its device files say."""
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.setattr(gpu_requests, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, 2), ("", 0), ("-1", 0), ("1", 1), ("0,1", 2), ("0,1,2,3", 2), ("GPU-abc", 1)]
)
def test_gpus_of_this_machine(visible: str | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert num_local_gpus() == expected


@pytest.mark.parametrize("role", ["replay", "rollout"])
def test_several_workers_without_a_request_have_one_line(role: str) -> None:
    assert gpu_request_warnings(config_of(**{role: {"workers": 3}})) == [
        f"{role}.workers = 3 with {role}.num_gpus = 0: all of them use the first GPU of their node; set "
        f"{role}.num_gpus = 1, or 0.33 to share one on purpose"
    ]


def test_the_plan_has_the_line(tmp_path: Path) -> None:
    plan = describe(config_of(replay={"workers": 2}), tmp_path / "run")
    (line,) = [line for line in plan.splitlines() if line.startswith("WARNING")]
    assert "replay.workers = 2 with replay.num_gpus = 0" in line


@pytest.mark.parametrize(
    "sections",
    [
        {"replay": {"workers": 1}},
        {"replay": {"workers": 2, "num_gpus": 0.5}},
        {"replay": {"workers": 2}, "model": {"device": "cpu"}},
        {"replay": {"workers": 2}, "runtime": {"kind": "serial"}},
        {"rollout": {"workers": 2}, "objective": {"lambda_lm": 0.0, "lambda_kl": 0.0}},
    ],
    ids=str,
)
def test_what_shares_no_gpu_by_accident_has_none(sections: dict[str, dict[str, Any]]) -> None:
    assert gpu_request_warnings(config_of(**sections)) == []


def test_without_a_gpu_nothing_is_said_unless_the_run_asks_for_one(devices: Path) -> None:
    for path in devices.glob("nvidia?"):
        path.unlink()
    assert gpu_request_warnings(config_of(replay={"workers": 2})) == []
    elsewhere = config_of(replay={"workers": 2}, runtime={"learner_num_gpus": 1.0})
    assert len(gpu_request_warnings(elsewhere)) == 1
    assert len(gpu_request_warnings(config_of(replay={"workers": 2}, model={"device": "cuda"}))) == 1


def test_learner_processes_on_one_gpu_are_refused() -> None:
    runtime = {"learner_processes": 2}
    with pytest.raises(ConfigError, match="runtime.learner_processes = 2 with runtime.learner_num_gpus = 0.*NCCL"):
        gpu_request_warnings(config_of(runtime=runtime, replay={"workers": 1}))
    on_cpus = config_of(runtime=runtime, replay={"workers": 1}, model={"device": "cpu"})
    assert gpu_request_warnings(on_cpus) == []
