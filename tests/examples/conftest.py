"""What the tests of docs/examples share: the examples are importable, and a run of two steps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from saga_dist.cli import main as cli

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"

TINY = """
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


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the examples, on the import path as PYTHONPATH would put it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return EXAMPLES


@pytest.fixture
def train(
    tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs ``saga-dist train`` on the tiny model for two steps into ``tmp_path/run``; returns what it printed."""
    config = tmp_path / "tiny.toml"
    config.write_text(TINY.replace("MODEL", str(tiny_checkpoint)))

    def run(*arguments: str) -> str:
        command = ["saga-dist", "train", str(config), *arguments, "--run-dir", str(tmp_path / "run")]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capfd.readouterr()
        assert not end.value.code, captured.err
        return captured.out

    return run
