"""The recipes for small cards train: two steps each on a tiny model of their family, which has three blocks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import saga_dist
from saga_dist.config import load_config
from saga_dist.runtime.run import train
from saga_dist.standin.random_families import write_random_family

pytestmark = pytest.mark.integration

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = [
    "data.image_size=80",
    "data.batch_size=8",
    "data.images_per_class=2",
    "data.val_fraction=0",
    "prompt.vocabulary=standin_birds",
    "model.dtype=float32",
    "model.device=cpu",
    "model.embedding_dim=16",
    "objective.kl_layer=2",
    "rollout.engine=transformers",
    "rollout.group_size=2",
    "rollout.pairs_per_batch=4",
    "rollout.contributing_groups=2",
    "rollout.max_micro_batches=1",
    "rollout.max_tokens=8",
    "rollout.num_gpus=0.0",
    "runtime.kind=serial",
    "runtime.learner_num_gpus=0.0",
    "run.steps=2",
    "logging.tensorboard=false",
]
VERDICT = ["objective.signal=verdict", "objective.lambda_kl=0.0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_family(tmp_path_factory.mktemp("model"), "qwen3_vl")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for number in range(16):
        path = root / f"class_{number // 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


@pytest.mark.parametrize(
    ("name", "own", "trained"),
    [
        ("small_24gb", [], "lora_"),
        ("small_24gb", VERDICT, "lora_"),
        ("small_48gb", ["model.train=last:2"], "blocks.2."),
        ("small_80gb", [], "lora_"),
    ],
    ids=["24 GB", "24 GB, verdicts", "48 GB", "80 GB"],
)
def test_a_recipe_takes_two_steps(
    name: str, own: list[str], trained: str, model: Path, images: Path, tmp_path: Path
) -> None:
    config = load_config(CONFIGS / f"{name}.toml", [*SMALL, f"model.path={model}", f"data.root={images}", *own])
    train(config, tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step_00000002")
    tower = {key for key in load_file(checkpoint / "learner.safetensors") if key.startswith("tower.")}
    assert tower
    assert any(trained in key for key in tower)
    assert not any("patch_embed" in key for key in tower)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(step["gradient/total_norm"] > 0 for step in steps if "gradient/total_norm" in step)
    embeddings = saga_dist.load(tmp_path / "run").encode(sorted(images.glob("*/*.png"))[:3])
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
