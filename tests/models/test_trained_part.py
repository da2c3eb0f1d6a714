"""``model.train``: which tensors of a tower train, where low-rank updates begin, and what a saved encoder holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from saga_dist.config.method import ModelSection
from saga_dist.errors import ModelError
from saga_dist.models.encoder import Encoder, load
from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import VisionTower
from saga_dist.models.lora import merged_weights
from saga_dist.models.pooler import Pooler
from saga_dist.models.trained_part import choose_trained

READERS_OF_LAST_TWO = {
    "qwen3_vl": ("model.blocks.1.", "model.blocks.2.", "model.merger.", "model.deepstack_merger_list.1."),
    "qwen2_5_vl": ("model.blocks.1.", "model.blocks.2.", "model.merger."),
    "internvl": (
        "model.vision_tower.encoder.layer.1.",
        "model.vision_tower.encoder.layer.2.",
        "model.vision_tower.layernorm.",
        "model.multi_modal_projector.",
    ),
}
"""Prefixes of the last two of three blocks and of the modules behind them; Qwen3-VL's DeepStack levels are 0 and 2."""


def tower_of(checkpoint: Path, train: str, *, seed: int = 1, **lora: object) -> VisionTower:
    tower = resolve_family(checkpoint).load_tower()
    choose_trained(tower, ModelSection.model_validate({"train": train, **lora}), seed=seed)
    return tower


def trained_names(tower: VisionTower) -> set[str]:
    return {name for name, parameter in tower.named_parameters() if parameter.requires_grad}


def pictures(count: int = 2) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 80, 80, 3), dtype=np.uint8))


def tokens_of(tower: VisionTower) -> torch.Tensor:
    values_NW: torch.Tensor = tower(tower.preprocess(pictures()))
    return values_NW


def with_updates(tower: VisionTower) -> VisionTower:
    """The tower with low-rank updates that are not zero."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return tower


def test_last_blocks_are_those_and_what_reads_them(family_checkpoint: Path) -> None:
    tower = tower_of(family_checkpoint, "last:2")
    every = {name for name, _ in tower.named_parameters()}
    expected = {name for name in every if name.startswith(READERS_OF_LAST_TWO[tower.family])}
    assert trained_names(tower) == expected
    assert len({name.split(".", 2)[1] for name in every - expected}) >= 1
    tokens_of(tower).square().sum().backward()
    assert {name for name, parameter in tower.named_parameters() if parameter.grad is not None} == expected


def test_low_rank_updates_begin_at_the_tower_itself(family_checkpoint: Path) -> None:
    plain, adapted = tower_of(family_checkpoint, "all"), tower_of(family_checkpoint, "lora")
    assert torch.equal(tokens_of(adapted), tokens_of(plain))
    merged = merged_weights(adapted)
    assert merged.keys() == plain.state_dict().keys()
    assert all(torch.equal(merged[name], weight) for name, weight in plain.state_dict().items())
    linear = [name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)]
    assert trained_names(adapted) == {f"{name}.lora_{part}.default.weight" for name in linear for part in "AB"}
    tokens_of(adapted).square().sum().backward()
    idle = [n for n, p in adapted.named_parameters() if "lora_B" in n and (p.grad is None or not p.grad.norm())]
    assert idle == []


def test_low_rank_updates_follow_their_seed_alone(tiny_checkpoint: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = tower_of(tiny_checkpoint, "lora", lora_rank=3)
    assert torch.equal(torch.rand(1), expected), "the global random state has changed"
    again, other = (tower_of(tiny_checkpoint, "lora", seed=seed, lora_rank=3) for seed in (1, 2))
    name = next(name for name in trained_names(first) if "lora_A" in name)
    updates = [dict(tower.named_parameters())[name] for tower in (first, again, other)]
    assert len(updates[0]) == 3
    assert torch.equal(updates[0], updates[1])
    assert not torch.equal(updates[0], updates[2])


def test_a_saved_encoder_holds_merged_weights_under_plain_names(family_checkpoint: Path, tmp_path: Path) -> None:
    adapted = with_updates(tower_of(family_checkpoint, "lora", lora_rank=2, lora_alpha=6))
    pooler = Pooler(width=adapted.layout.width, embedding_dim=16, seed=5)
    encoder, plain = (Encoder(tower, pooler, image_size=80) for tower in (adapted, tower_of(family_checkpoint, "all")))
    for name, saved in (("adapted", encoder), ("plain", plain)):
        saved.save(tmp_path / name)
    keys = [set(safe_open(tmp_path / name / "model.safetensors", "pt").keys()) for name in ("adapted", "plain")]
    assert keys[0] == keys[1]
    found = load(tmp_path / "adapted").encode(pictures())
    np.testing.assert_allclose(found, encoder.encode(pictures()), atol=2e-6)
    assert np.abs(found - plain.encode(pictures())).max() > 1e-2, "the updates are missing"


def test_a_tower_that_is_frozen_already_is_refused(tiny_checkpoint: Path) -> None:
    tower = resolve_family(tiny_checkpoint).load_tower()
    next(tower.parameters()).requires_grad_(False)
    with pytest.raises(ModelError, match=r"tensor model\..* of the tower is frozen"):
        choose_trained(tower, ModelSection(), seed=0)


def test_more_blocks_than_a_tower_has_are_refused(family_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match='model.train = "last:4".*at most last:3'):
        tower_of(family_checkpoint, "last:4")


class OwnTower(VisionTower):
    """A tower of a user's own, whose class says nothing of blocks."""

    family = "mine.towers:OwnTower"
    preprocess = forward = enable_gradient_checkpointing = describe = save_preprocessing = None  # type: ignore[assignment]


def test_a_tower_that_names_no_blocks_says_what_to_define() -> None:
    with pytest.raises(ModelError, match="mine.towers:OwnTower does not name its blocks.*define last_blocks"):
        choose_trained(OwnTower(), ModelSection(train="last:1"), seed=0)
