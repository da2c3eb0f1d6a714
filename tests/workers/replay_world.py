"""A checkpoint loaded twice, groups of random completions, and their replay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import Family, PixelBatch
from saga_dist.types import (
    Completions,
    EncoderTokens,
    ImagePair,
    ReplayTask,
    Sampling,
    ScoredGroup,
    TokenGradients,
)
from saga_dist.workers.replay import ReplayWorker

LENGTHS = (5, 11, 8, 1, 9)
REWARDS = (1, 0, 1, 0, 1)
DESCRIBED_A = (slice(0, 2), slice(0, 2), slice(1, 4), slice(0, 0), slice(2, 2))
"""Completion 4 is right but describes no image a: it has no target."""
DESCRIBED_B = (slice(2, 5), slice(3, 6), slice(4, 8), slice(0, 1), slice(3, 6))
"""Completion 0 describes image b up to its very last token."""
KL_LAYER = 1


@dataclass
class World:
    """One checkpoint, loaded twice: by the package and, untouched, by transformers."""

    folder: Path
    family: Family
    prompt_text: str
    reference: Any
    pairs: list[list[np.ndarray]]

    def groups(self) -> list[ScoredGroup]:
        vocabulary = self.reference.config.text_config.vocab_size
        return [scored_group(f"p{index}", vocabulary, seed=index) for index in range(len(self.pairs))]


def world_of(folder: Path, *, text_first: bool = False, sizes: tuple[int, int] = (80, 80)) -> World:
    from transformers import Qwen3VLForConditionalGeneration

    family = resolve_family(folder)
    image = family.image_placeholder
    body = f"Which is which? Bird 1: {image} Bird 2: {image}" if text_first else f"{image} and {image}: same species?"
    prompt_text = family.chat_format.before_user + body + family.chat_format.after_user
    reference = Qwen3VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    rng = np.random.default_rng(5)
    pairs = [[rng.integers(0, 256, (size, 80, 3), dtype=np.uint8) for size in sizes] for _ in range(2)]
    return World(folder, family, prompt_text, reference.eval(), pairs)


def scored_group(pair_id: str, vocabulary: int, *, seed: int) -> ScoredGroup:
    rng = np.random.default_rng(seed)
    ids = tuple(tuple(int(token) for token in rng.integers(8, vocabulary, length)) for length in LENGTHS)
    rewards_G = np.array(REWARDS, np.float32)
    completions = Completions(
        pair_id=pair_id,
        token_ids=ids,
        texts=("",) * len(ids),
        log_probs=tuple(np.zeros(length, np.float32) for length in LENGTHS),
        finish_reasons=("stop",) * len(ids),
        sampling=Sampling(len(ids), 1.0, 1.0, 16, seed),
        encoder_version=3,
    )

    def masks(spans: tuple[slice, ...]) -> tuple[np.ndarray, ...]:
        filled = [np.zeros(length, bool) for length in LENGTHS]
        for mask_T, span in zip(filled, spans, strict=True):
            mask_T[span] = True
        return tuple(filled)

    return ScoredGroup(
        pair=ImagePair(pair_id, 0, 1, 0, 0),
        completions=completions,
        verdicts=tuple(reward == 1 for reward in REWARDS),
        rewards_G=rewards_G,
        is_correct_G=rewards_G == 1,
        advantages_G=(rewards_G - rewards_G.mean()) / rewards_G.std(ddof=1),
        describes_a=masks(DESCRIBED_A),
        describes_b=masks(DESCRIBED_B),
    )


def record_of(group: ScoredGroup, pixels: PixelBatch, values_NW: torch.Tensor, num_deepstack: int) -> EncoderTokens:
    return EncoderTokens(
        pair_id=group.pair.pair_id,
        values_NW=values_NW.detach(),
        lengths=pixels.lengths,
        grids=pixels.grids,
        num_deepstack=num_deepstack,
        encoder_version=3,
    )


def worker_of(world: World, *, dtype: torch.dtype = torch.float32, **settings: Any) -> ReplayWorker:
    backbone = world.family.load_backbone(dtype=dtype)
    return ReplayWorker(backbone, family=world.family, prompt_text=world.prompt_text, kl_layer=KL_LAYER, **settings)


def replayed_gradients(
    world: World, *, dtype: torch.dtype = torch.float32, want_attention: bool = True, **settings: Any
) -> tuple[list[TokenGradients], dict[str, torch.Tensor]]:
    """Token gradients of every pair, and tower gradients after one backward through the tower."""
    worker = worker_of(world, dtype=dtype, **settings)
    tower = world.family.load_tower()
    groups = world.groups()
    total = sum(group.num_tokens for group in groups)
    results = []
    for group, images in zip(groups, world.pairs, strict=True):
        pixels = tower.preprocess(images)
        values_NW = tower(pixels)
        record = record_of(group, pixels, values_NW.to(dtype), tower.layout.num_deepstack)
        results.append(worker.replay(ReplayTask(group, record, total, want_attention), record))
        values_NW.backward(results[-1].values_NW)
    return results, {name: parameter.grad for name, parameter in tower.model.named_parameters()}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def strong_checkpoint(folder: Path, **sizes: Any) -> Path:
    """A random model with layers four times as strong as usual, so that attention and MLPs matter to the result."""
    from safetensors.torch import load_file, save_file

    from saga_dist.standin.checkpoint import write_random_checkpoint

    write_random_checkpoint(folder, seed=3, **sizes)
    tensors = load_file(folder / "model.safetensors")
    scaled = {
        name: 4 * tensor if tensor.ndim == 2 and ("layers." in name or "blocks." in name) else tensor
        for name, tensor in tensors.items()
    }
    save_file(scaled, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
