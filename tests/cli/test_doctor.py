"""The doctor: every check prints a line, a wrong one turns the exit code, the smoke test asks the real engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga_dist.cli import doctor_checks
from saga_dist.cli.doctor_checks import run_checks

SMALL = [
    "data.birds.val_images_per_class=2",
    "data.birds.test_images_per_class=2",
    "data.birds.probe_images=0",
    "rollout.engine=transformers",
]


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """First line of each check: name to "mark: finding"."""
    found = {}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith(("ok   ", "FAIL ")):
            name, _, finding = line[5:].partition(": ")
            found[name] = f"{line[:4].strip()}: {finding}"
    return found


@pytest.mark.integration
def test_all_is_well_and_a_pair_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_checks(None, SMALL, smoke=True) == 0
    found = lines(capsys)
    machine = {"python", "packages", "vllm", "devices", "memory", "disk", "ray auth"}
    assert set(found) == machine | {"plan", "capacity", "one pair", "one step"}
    assert "expected 1 x this processor: learner" in found["capacity"]
    assert "torch 2." in found["packages"]
    assert "verdict" in found["one pair"]
    assert "truth" in found["one pair"]
    assert "grpo share" in found["one step"]


@pytest.mark.integration
def test_a_loss_that_is_outweighed_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    small = [*SMALL, "objective.lambda_lm=1e-6", "rollout.pairs_per_batch=8", "rollout.contributing_groups=1"]
    assert run_checks(None, small, smoke=True) == 0
    assert "WARN one step: GRPO is " in capsys.readouterr().out


def test_any_error_of_a_check_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> str:
        raise RuntimeError("CUDA driver\nis too old")

    monkeypatch.setattr(doctor_checks, "_devices", broken)
    assert run_checks(None, SMALL, smoke=False) == 2
    found = lines(capsys)
    assert found["devices"] == "FAIL: RuntimeError: CUDA driver is too old"
    assert found["capacity"].startswith("ok")


def test_what_is_wrong_is_said_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "folder.toml"
    config.write_text('[data]\nlayout = "folder"\nroot = "/nowhere/at/all"\n[model]\npath = "standin"\n')
    assert run_checks(config, [], smoke=False) == 2
    found = lines(capsys)
    assert found["plan"].startswith("FAIL: /nowhere/at/all")
    assert found["packages"].startswith("ok")


def test_a_missing_model_fails_plan_and_smoke(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_checks(None, [*SMALL, "model.path=/nowhere/at/all"], smoke=True) == 2
    found = lines(capsys)
    assert found["plan"].startswith("FAIL: /nowhere/at/all: no such folder")
    assert found["one pair"].startswith("FAIL: /nowhere/at/all: no such folder")
