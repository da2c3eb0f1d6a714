"""The example of an own engine: it holds the contract, and a run trains with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from saga_dist.config.registries import ENGINES
from saga_dist.testing.engine import check_engine

NAME = "own_engine:RecordingEngine.from_context"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "said.jsonl"
    monkeypatch.setenv("COMPLETIONS_LOG", str(path))
    return path


@pytest.mark.integration
def test_it_holds_the_contract(example: Callable[[str], ModuleType], log: Path) -> None:
    check_engine(ENGINES.load(NAME))


@pytest.mark.integration
def test_two_steps_train_with_it(
    example: Callable[[str], ModuleType], log: Path, train: Callable[..., str], tmp_path: Path
) -> None:
    train(f"rollout.engine={NAME}", "--dry-run")
    assert not log.exists()
    train(f"rollout.engine={NAME}")
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in steps} >= {1, 2}
    said = [json.loads(line) for line in log.read_text().splitlines()]
    trained = [row for row in said if not row["pair"].startswith("check-")]  # without the start-up comparison
    assert len(trained) == 2 * 4
    assert {row["encoder_version"] for row in trained} == {0, 1}
    assert all(len(row["texts"]) == 4 for row in trained)
