"""Two whole steps of training with each family, by the command line, and the encoder that is left."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import saga_dist
from saga_dist.cli import main as cli

CONFIG = """
[run]
steps = 2
[data]
layout = "birds"
image_size = 80
batch_size = 8
images_per_class = 2
[data.birds]
train_classes = 4
train_images_per_class = 3
val_images_per_class = 2
test_images_per_class = 2
probe_images = 0
[prompt]
vocabulary = "standin_birds"
[model]
path = "MODEL"
dtype = "float32"
embedding_dim = 16
[objective]
metric_loss = "proxy_anchor"
kl_layer = 1
[rollout]
engine = "transformers"
pairs_per_batch = 4
group_size = 2
max_micro_batches = 1
max_tokens = 8
[runtime]
kind = "serial"
"""


def test_a_run_names_its_family_trains_and_leaves_an_encoder(
    family_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = json.loads((family_checkpoint / "config.json").read_text())["model_type"]
    config = tmp_path / "run.toml"
    config.write_text(CONFIG.replace("MODEL", str(family_checkpoint)))
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
