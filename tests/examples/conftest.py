"""A real training of two steps from the folder of the examples, by the command line, with objects of one's own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from saga_dist.cli import main as cli

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"

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
path = "standin"
dtype = "float32"
embedding_dim = 16
device = "cpu"
[objective]
metric_loss = "proxy_anchor"
kl_layer = 1
[rollout]
engine = "transformers"
pairs_per_batch = 4
group_size = 4
max_micro_batches = 1
max_tokens = 80
temperature = 1.3
top_p = 1.0
[runtime]
kind = "serial"
[checkpoint]
every_steps = 1
[logging]
tensorboard = false
"""


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports an example as the command does: from the current directory, which is the examples' folder."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [*sys.path, str(EXAMPLES)])

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


@pytest.fixture
def train(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs ``saga-dist train`` for two steps into ``tmp_path/run``; returns what it printed."""
    config = tmp_path / "tiny.toml"
    config.write_text(CONFIG)

    def run(*arguments: str) -> str:
        command = ["saga-dist", "train", str(config), "--run-dir", str(tmp_path / "run"), *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capfd.readouterr()
        assert not end.value.code, captured.err
        return captured.out

    return run


@pytest.fixture
def dry_run_and_train(train: Callable[..., str], tmp_path: Path) -> Callable[..., Path]:
    """Runs ``train`` with ``--dry-run``, then without; returns the run directory."""

    def run(*overrides: str) -> Path:
        train(*overrides, "--dry-run")
        assert not (tmp_path / "run").exists()
        train(*overrides)
        return tmp_path / "run"

    return run
