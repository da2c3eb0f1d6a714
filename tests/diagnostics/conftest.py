"""A real run of two steps on a few built-in birds: real tower, real rollouts, checkpoint and recordings."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga_dist.config import RunConfig, parse_config
from saga_dist.runtime.run import train


def small_config(**sections: dict[str, object]) -> RunConfig:
    values: dict[str, dict[str, object]] = {
        "run": {"steps": 2},
        "data": {
            "layout": "birds",
            "image_size": 80,
            "batch_size": 16,
            "images_per_class": 4,
            "flip": True,
            "birds": {
                "train_classes": 4,
                "train_images_per_class": 6,
                "val_images_per_class": 2,
                "test_images_per_class": 3,
                "probe_images": 8,
            },
        },
        "prompt": {"vocabulary": "standin_birds"},
        "model": {"path": "standin", "dtype": "float32", "embedding_dim": 16, "device": "cpu"},
        "objective": {"metric_loss": "multi_similarity", "kl_layer": 1, "lambda_kl": 3.0},
        "rollout": {
            "engine": "transformers",
            "pairs_per_batch": 12,
            "max_micro_batches": 1,
            "max_tokens": 80,
            "max_model_len": 512,
        },
        "runtime": {"kind": "serial", "threads": 1},
        "logging": {"tensorboard": False},
        "checkpoint": {"every_steps": 1},
        "evaluation": {"every_steps": 1, "bootstrap_resamples": 100},
    }
    return parse_config({name: {**values.get(name, {}), **sections.get(name, {})} for name in values}, where="test")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory."""
    path = tmp_path_factory.mktemp("evidence") / "run"
    train(small_config(), path)
    return path
