"""The shipped stand-in is what the demonstration needs: valid, mostly right, and it looks at the bird."""

from __future__ import annotations

import pytest
import torch

from saga_dist.config import BirdsSection
from saga_dist.standin import checkpoint_path
from saga_dist.standin.birds import PLAIN_STYLE
from saga_dist.standin.checkpoint import verify_manifest
from saga_dist.standin.examine import examine_pairs
from saga_dist.standin.pair_model import PairModel
from saga_dist.standin.world import NUISANCE_PRETRAIN, split

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def reader() -> PairModel:
    from transformers import Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint_path(), dtype=torch.float32).eval()
    return PairModel(model, image_size=80)


def test_both_pre_trainings_are_shipped_whole_and_differ() -> None:
    first, second = (verify_manifest(checkpoint_path(seed)) for seed in (0, 1))
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["stages"] == second["stages"]  # one recipe
    assert first["sha256"]["model.safetensors"] != second["sha256"]["model.safetensors"]
    assert first["sha256"]["tokenizer.json"] == second["sha256"]["tokenizer.json"]


def test_on_birds_that_look_as_in_pre_training(reader: PairModel) -> None:
    birds = split("val", BirdsSection(val_images_per_class=4), style=PLAIN_STYLE, nuisance=NUISANCE_PRETRAIN)
    figures = examine_pairs(reader, birds, num_pairs=64, group_size=2)
    assert figures["valid_greedy"] >= 0.98
    assert figures["valid_sampled"] >= 0.97
    assert figures["verdict_accuracy"] >= 0.85
    assert figures["verdict_follows_words"] >= 0.9


def test_on_birds_of_the_downstream_splits(reader: PairModel) -> None:
    figures = examine_pairs(reader, split("train", BirdsSection()), num_pairs=160, group_size=8)
    assert figures["valid_sampled"] >= 0.97
    assert 0.5 <= figures["verdict_accuracy"] <= 0.9  # room to learn
    assert 0.2 <= figures["contributing_share"] <= 0.8  # and groups to learn from
    assert figures["attention_on_bird"] >= 0.8
    assert figures["verdict_follows_words"] >= 0.85
