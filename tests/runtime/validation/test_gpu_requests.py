"""Workers that request no GPU on a machine with GPUs share its first one: a line says so before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saga_dist.config import RunConfig, parse_config
from saga_dist.errors import ConfigError
from saga_dist.runtime.validation import gpu_requests, validate_run
from saga_dist.runtime.validation.facts import RunFacts
from saga_dist.runtime.validation.gpu_requests import check_gpu_requests


def config_of(**sections: dict[str, Any]) -> RunConfig:
    tree = {"data": {"layout": "birds", "image_size": 80}, "model": {"path": "standin"}, "objective": {"kl_layer": 1}}
    return parse_config(
        {**tree, **{name: tree.get(name, {}) | section for name, section in sections.items()}}, where="test"
    )


def check(config: RunConfig) -> str:
    return check_gpu_requests(RunFacts(config, Path("runs/none")))


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs."""
    monkeypatch.setattr(gpu_requests, "visible_gpus", lambda: 2)


@pytest.mark.parametrize("role", ["replay", "rollout"])
def test_several_workers_without_a_request_have_one_line(role: str) -> None:
    assert check(config_of(**{role: {"workers": 3}})) == (
        f"{role}.workers = 3 with {role}.num_gpus = 0: all of them use the first GPU of their node; set "
        f"{role}.num_gpus = 1, or 0.33 to share one on purpose"
    )


def test_both_roles_are_named_in_one_line() -> None:
    text = check(config_of(rollout={"workers": 2}, replay={"workers": 4}))
    assert "rollout.workers = 2" in text and "; replay.workers = 4" in text and "or 0.25 to share" in text
    assert "\n" not in text


def test_the_validation_of_a_run_has_the_line(tmp_path: Path) -> None:
    warnings = validate_run(config_of(replay={"workers": 2}, runtime={"local_cpus": 8}), tmp_path / "run")
    assert len([line for line in warnings if "replay.workers = 2 with replay.num_gpus = 0" in line]) == 1


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
    assert check(config_of(**sections)) == ""


@pytest.mark.parametrize("there", [0, None], ids=["none", "unknown"])
def test_without_a_gpu_nothing_is_said_unless_the_run_asks_for_one(
    there: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_requests, "visible_gpus", lambda: there)
    assert check(config_of(replay={"workers": 2})) == ""
    assert check(config_of(replay={"workers": 2}, runtime={"learner_num_gpus": 1.0}))
    assert check(config_of(replay={"workers": 2}, model={"device": "cuda"}))


def test_learner_processes_on_one_gpu_are_refused() -> None:
    runtime = {"learner_processes": 2}
    with pytest.raises(ConfigError, match="runtime.learner_processes = 2 with runtime.learner_num_gpus = 0.*NCCL"):
        check(config_of(runtime=runtime, replay={"workers": 1}))
    assert check(config_of(runtime=runtime, replay={"workers": 1}, model={"device": "cpu"})) == ""
