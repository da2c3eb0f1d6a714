"""The contract check of model families: the built-in ones pass, and ways to break the contract are found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saga_dist.models.families import load_family_class
from saga_dist.models.families.base import PackedOutput, PaddedOutput, PixelBatch, PromptLayout
from saga_dist.models.families.qwen3_vl.backbone import Qwen3VLBackbone
from saga_dist.models.families.qwen3_vl.family import Qwen3VLFamily
from saga_dist.models.families.qwen3_vl.tower import Qwen3VLTower
from saga_dist.models.families.qwen_vl.tower import QwenVLTower
from saga_dist.standin.random_families import write_random_family
from saga_dist.testing.family import check_model_family
from saga_dist.types import Grid


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_family(tmp_path_factory.mktemp("qwen3_vl"), "qwen3_vl", seed=3)


@pytest.mark.integration
def test_built_in_families_hold_the_contract(family_checkpoint: Path) -> None:
    name = json.loads((family_checkpoint / "config.json").read_text())["model_type"]
    check_model_family(load_family_class(name), family_checkpoint)


def with_tower(tower: type[QwenVLTower]) -> type[Qwen3VLFamily]:
    return type("Own", (Qwen3VLFamily,), {"tower_class": tower})


def with_backbone(backbone: type[Qwen3VLBackbone]) -> type[Qwen3VLFamily]:
    return type("Own", (Qwen3VLFamily,), {"backbone_class": backbone})


class TakesAnyImage(Qwen3VLTower):
    def preprocess(self, images: Sequence[np.ndarray]) -> PixelBatch:
        side = 5 * self.layout.pixels_per_token
        whole = [image if image.shape == (side, side, 3) else np.zeros((side, side, 3), np.uint8) for image in images]
        return super().preprocess([image.astype(np.uint8) for image in whole])


class DropsDeepStack(Qwen3VLTower):
    def forward(self, batch: PixelBatch) -> torch.Tensor:
        return self.layout.main(super().forward(batch))


class DependsOnTheBatch(Qwen3VLTower):
    def forward(self, batch: PixelBatch) -> torch.Tensor:
        return super().forward(batch) * len(batch.grids)


class CheckpointingChangesIt(Qwen3VLTower):
    def enable_gradient_checkpointing(self) -> None:
        with torch.no_grad():
            next(self.parameters()).mul_(1.1)


class IsNotTheTowerOfItsFamily(Qwen3VLTower):
    """A saved encoder names qwen3_vl, whose own tower does not add 1."""

    def forward(self, batch: PixelBatch) -> torch.Tensor:
        return super().forward(batch) + 1


class NamesNoBlock(Qwen3VLTower):
    def last_blocks(self, count: int) -> list[torch.nn.Module]:
        return []


class TrainsEverything(Qwen3VLTower):
    def last_blocks(self, count: int) -> list[torch.nn.Module]:
        return [self.model]


class HasAsManyBlocksAsAsked(Qwen3VLTower):
    def last_blocks(self, count: int) -> list[torch.nn.Module]:
        return list(self.model.blocks[-count:])


class CountsOn(Qwen3VLBackbone):
    def build_layout(self, prompt_ids: Sequence[int], grids: Sequence[Grid]) -> PromptLayout:
        usual = super().build_layout(prompt_ids, grids)
        return PromptLayout(usual.token_ids_S, usual.images, usual.position_ids_RS, usual.next_position - 1)


class Wakes(Qwen3VLBackbone):
    def train(self, mode: bool = True) -> Qwen3VLBackbone:
        torch.nn.Module.train(self, mode)
        return self


class DropsDeepStackInPrefill(Qwen3VLBackbone):
    def prefill(self, prompt: PromptLayout, values_NW: Any, span: slice, past: Any = None) -> Any:
        if values_NW is not None:
            levels = [torch.zeros_like(level) for level in self.layout.levels(values_NW)]
            values_NW = torch.cat([self.layout.main(values_NW), *levels], dim=1)
        return super().prefill(prompt, values_NW, span, past)


class PacksWrongly(Qwen3VLBackbone):
    def forward_packed(self, *args: Any, **kwargs: Any) -> PackedOutput:
        run = super().forward_packed(*args, **kwargs)
        return PackedOutput(run.hidden_RD.flip(0), run.probe)


class HasNoProbe(Qwen3VLBackbone):
    def forward_completions(self, *args: Any, **kwargs: Any) -> PaddedOutput:
        return PaddedOutput(super().forward_completions(*args, **kwargs).hidden_GTD, None)


class DecodesOneBehind(Qwen3VLBackbone):
    def decode_step(self, cache: Any, token_ids_B: torch.Tensor, position: int) -> torch.Tensor:
        return super().decode_step(cache, token_ids_B, position + 1 + 10 * (position % 2))


class ForbidsNothing(Qwen3VLFamily):
    @property
    def forbidden_token_ids(self) -> tuple[int, ...]:
        return ()


class LeavesTextOut(Qwen3VLFamily):
    def engine_prompt_ids(self, prompt_ids: Sequence[int]) -> list[int]:
        return list(prompt_ids)[:3]


class SpeaksOfVideos(Qwen3VLFamily):
    def image_inputs(self, tokens: Any) -> dict[str, Any]:
        return {"video": super().image_inputs(tokens)["image"]}


@pytest.mark.parametrize(
    ("family", "said"),
    [
        (with_tower(TakesAnyImage), "preprocess took a uint8 image of shape \\(80, 79, 3\\)"),
        (with_tower(DropsDeepStack), "tokens of shape \\(50, 128\\), not .* \\(50, 384\\)"),
        (with_tower(DependsOnTheBatch), "other tokens alone than in a batch"),
        (with_tower(CheckpointingChangesIt), "gradient checkpointing changes a gradient"),
        (with_tower(NamesNoBlock), "last_blocks\\(1\\) names no parameter"),
        (with_tower(TrainsEverything), "names all parameters of the tower"),
        (with_tower(HasAsManyBlocksAsAsked), "took more blocks than the tower has"),
        (with_tower(IsNotTheTowerOfItsFamily), "a saved encoder gives other embeddings"),
        (with_backbone(CountsOn), "next_position is not behind the prompt"),
        (with_backbone(Wakes), "can be put into training mode"),
        (with_backbone(DropsDeepStackInPrefill), "no gradient reaches level 1"),
        (with_backbone(PacksWrongly), "forward_packed differs"),
        (with_backbone(HasNoProbe), "forward_completions gave no attention probe"),
        (with_backbone(DecodesOneBehind), "decode_step"),
        (ForbidsNothing, "forbidden_token_ids lacks the image token"),
        (LeavesTextOut, "engine_prompt_ids leaves text out"),
        (SpeaksOfVideos, "modalities \\['video'\\]"),
    ],
)
def test_a_broken_contract_is_found(family: type[Qwen3VLFamily], said: str, checkpoint: Path) -> None:
    with pytest.raises(AssertionError, match=said):
        check_model_family(family, checkpoint)
