"""``saga-dist config`` and ``saga-dist metrics``: the references in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest

from saga_dist.cli import main as cli
from saga_dist.config.reference import config_keys, config_schema
from saga_dist.metrics.registry import all_metrics

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line; returns exit code, output and error output."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["saga-dist", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (int(end.value.code or 0), *capsys.readouterr())

    return command


def test_overviews_list_every_name(run: Run) -> None:
    for command, names in (
        ("config", {key.key for key in config_keys()}),
        ("metrics", {metric.name for metric in all_metrics()}),
    ):
        code, output, _ = run(command)
        assert code == 0
        assert names <= {line.split()[0] for line in output.splitlines() if line.strip()}


def test_one_key_is_explained(run: Run) -> None:
    code, output, _ = run("config", "rollout.top_p")
    assert code == 0
    lines = dict(line.strip().split("  ", 1) for line in output.splitlines() if "  " in line.strip())
    assert lines["values"].strip() == "number > 0, <= 1"
    assert lines["default"].strip() == lines["paper"].strip() == "0.95"
    assert "rollout.temperature" not in output
    assert "paper" not in run("config", "data.root")[1]


def test_one_metric_is_explained(run: Run) -> None:
    code, output, _ = run("metrics", "importance/weight_p99")
    assert code == 0
    assert output.split()[0] == "importance/weight_p{N}"
    assert "p50 near 1" in output and "rollout.importance_truncation" in run("metrics", "importance/")[1]


def test_the_schema_is_printed_as_json(run: Run) -> None:
    code, output, _ = run("config", "--schema")
    assert code == 0
    assert json.loads(output) == config_schema()
