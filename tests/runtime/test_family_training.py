"""Two whole steps of training with each family, by the command line, and the encoder that is left."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import saga_dist
from saga_dist.cli import main as cli


@pytest.mark.integration
def test_a_run_names_its_family_trains_and_leaves_an_encoder(
    family_checkpoint: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    write_tiny_config: Callable[..., Path],
) -> None:
    name = json.loads((family_checkpoint / "config.json").read_text())["model_type"]
    config = write_tiny_config(tmp_path / "run.toml", family_checkpoint)
    run = tmp_path / "run"

    def command(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["saga-dist", "train", str(config), "--run-dir", str(run), *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return capfd.readouterr().out

    assert f"{family_checkpoint} ({name})" in command("--dry-run")
    command()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} >= {1, 2}
    results = json.loads((run / "results.json").read_text())
    assert results["backbone_unchanged"] is True
    encoder = saga_dist.load(run / "model")
    assert encoder.tower.family == name
    assert encoder.encode([np.zeros((90, 100, 3), np.uint8)]).shape == (1, 16)
