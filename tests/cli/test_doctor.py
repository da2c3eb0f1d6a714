"""The doctor: every check prints a line, a wrong one turns the exit code, the smoke test asks the real engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from saga_dist.cli import doctor_checks
from saga_dist.cli.doctor_checks import run_checks
from saga_dist.cli.doctor_smoke import Finding, SmokeTest
from saga_dist.runtime import serial
from saga_dist.types import ImagePair

SMALL = [
    "data.birds.val_images_per_class=2",
    "data.birds.test_images_per_class=2",
    "data.birds.probe_images=0",
    "rollout.engine=transformers",
    "evaluation.verdict_pairs=20",
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
    config.write_text(
        '[data]\nlayout = "folder"\nroot = "/nowhere/at/all"\n[model]\npath = "standin"\n[objective]\nkl_layer = 1\n'
    )
    assert run_checks(config, [], smoke=False) == 2
    found = lines(capsys)
    assert found["plan"].startswith("FAIL: /nowhere/at/all")
    assert found["packages"].startswith("ok")


def test_models_are_not_tried_when_the_plan_is_not_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_checks(None, [*SMALL, "model.path=/nowhere/at/all"], smoke=True) == 2
    out = capsys.readouterr().out
    assert "FAIL plan: /nowhere/at/all: no such folder" in out
    assert out.splitlines()[-1] == "skip one pair, one step: not tried, because the plan is not valid"


class Panic(BaseException):
    """An exception as a library of compiled code raises it, which is no ``Exception``."""


@pytest.mark.parametrize("raised", [Panic("in the tokenizer\nat line 3"), SystemExit(3), ImportError("no libcuda.so")])
def test_whatever_a_check_raises_is_one_line_and_the_others_run(
    raised: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> str:
        raise raised

    names = ("_packages", "_vllm", "_devices", "_memory", "_disk", "_ray_auth", "describe", "_capacity")
    for name in names:
        monkeypatch.setattr(doctor_checks, name, broken)
    assert run_checks(None, SMALL, smoke=True) == 2
    printed = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in printed] == ["ok  ", *["FAIL"] * len(names), "skip"]
    first, *others = printed[1:-1]
    assert first == f"FAIL packages: {type(raised).__name__}: {' '.join(str(raised).split())}"
    assert [line.partition(": ")[2] for line in others] == ["for the same reason as packages"] * (len(names) - 1)


def test_an_interrupt_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor_checks, "_devices", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_checks(None, SMALL, smoke=False)


def test_models_that_cannot_be_built_are_tried_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[object] = []

    def unreachable(config: object) -> None:
        tried.append(config)
        raise OSError("the hub did not answer")

    monkeypatch.setattr(serial, "SerialRuntime", unreachable)
    assert run_checks(None, SMALL, smoke=True) == 2
    assert len(tried) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "FAIL one pair: OSError: the hub did not answer",
        "FAIL one step: for the same reason as one pair",
    ]


def test_what_closing_the_models_raises_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object) -> str:
        raise RuntimeError("engine core died")

    monkeypatch.setattr(SmokeTest, "close", fails)
    monkeypatch.setattr(SmokeTest, "judge_one_pair", lambda models: Finding("judged"))
    monkeypatch.setattr(SmokeTest, "take_one_step", lambda models, warnings: "step 1")
    assert run_checks(None, SMALL, smoke=True) == 2
    assert capsys.readouterr().out.splitlines()[-1] == "FAIL end: RuntimeError: engine core died"


def judged(text: str, *, verdict: bool | None, reason: str) -> SimpleNamespace:
    completions = SimpleNamespace(texts=(text,), finish_reasons=(reason,))
    return SimpleNamespace(verdicts=(verdict,), completions=completions, num_tokens=7)


@pytest.mark.parametrize(
    ("group", "mark", "said"),
    [
        (judged("{}", verdict=True, reason="stop"), "ok  ", "verdict same"),
        (judged("{", verdict=None, reason="length"), "WARN", "cut off at rollout.max_tokens = 80; raise it"),
        (judged("{", verdict=True, reason="length"), "WARN", "cut off at rollout.max_tokens = 80; raise it"),
        (
            judged("I am\nsorry", verdict=None, reason="stop"),
            "WARN",
            "no verdict can be read from 'I am sorry'; ch",
        ),
    ],
    ids=["a verdict", "cut off", "cut off after the verdict", "no verdict"],
)
def test_a_pair_without_a_whole_verdict_is_a_warning(
    group: SimpleNamespace,
    mark: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(SmokeTest, "_models", lambda models: SimpleNamespace(rollouts=None, close=lambda: None))
    monkeypatch.setattr(SmokeTest, "_encoded_test_pair", lambda models: (ImagePair("p", 0, 1, 0, 0), None))
    monkeypatch.setattr(SmokeTest, "take_one_step", lambda models, warnings: "step 1")
    monkeypatch.setattr("saga_dist.workers.serial_pool.run_all", lambda pool, tasks: [group])
    assert run_checks(None, [*SMALL, "rollout.max_tokens=80"], smoke=True) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " one pair: " in line]
    assert line.startswith(f"{mark} one pair: transformers ready")
    assert said in line


def test_a_broken_torch_is_no_traceback(tmp_path: Path) -> None:
    """A library that raises when it is imported, in a process of its own."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    done = subprocess.run(
        [sys.executable, "-m", "saga_dist.cli.main", "doctor"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "FAIL devices: OSError: libcudart.so.13" in done.stdout
    assert "ok   plan: " in done.stdout
    assert "FAIL one pair: for the same reason as devices" in done.stdout


def test_lines_of_the_hub_are_printed_once() -> None:
    """The library has a handler of its own; the root's, which the commands add, must not print its records again."""
    code = (
        "import logging\n"
        "from saga_dist.cli.arguments import configure_logging\n"
        "configure_logging()\n"
        "import huggingface_hub.utils._http\n"  # the package itself imports nothing until it is used
        "assert logging.getLogger('huggingface_hub').handlers\n"
        "logging.getLogger('huggingface_hub.utils._http').warning('Retrying in 1s [Retry 1/5].')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr.count("Retrying in 1s") == 1
