"""One pair of images, one prompt and one group for a family, and plain autograd of the untouched model on them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import Family, PixelBatch
from saga_dist.types import Completions, EncoderTokens, ImagePair, Sampling, ScoredGroup, TokenGradients

LENGTHS = (4, 9, 1, 7)
REWARDS = (1, 0, 0, 1)
TEXTS = {
    "images_first": "{image} and {image}: same species?",
    "text_first": "Which is which? Bird 1: {image} Bird 2: {image}",
}


@dataclass(frozen=True)
class World:
    """One pair of images and one prompt, for a family and for the model as transformers loads it."""

    family: Family
    reference: Any
    processor: Any
    order: str
    images: list[np.ndarray]

    @property
    def prompt_text(self) -> str:
        image, chat = self.family.image_placeholder, self.family.chat_format
        return chat.before_user + TEXTS[self.order].format(image=image) + chat.after_user

    def inputs(self, completion: tuple[int, ...] = (), *, opening: str = "") -> dict[str, torch.Tensor]:
        """Pixels and token ids of prompt and opening from the family's own processor, and a completion behind them."""
        text = self.prompt_text + opening
        if self.family.name == "internvl":  # whose processor puts the markers there itself
            text = text.replace("<img>", "").replace("</img>", "")
        inputs = dict(self.processor(text=[text], images=self.images, return_tensors="pt"))
        ids_1S = torch.cat([inputs["input_ids"], torch.tensor([completion], dtype=torch.int64)], dim=1)
        inputs.update(input_ids=ids_1S, attention_mask=torch.ones_like(ids_1S))
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = (ids_1S == self.reference.config.image_token_id).int()
        return {name: tensor.to(self.reference.device) for name, tensor in inputs.items()}

    def log_probs(self, completion: tuple[int, ...], output: Any) -> torch.Tensor:
        """[T] of a completion's tokens."""
        log_probs_TV = output.logits[0, -len(completion) - 1 : -1].float().log_softmax(-1)
        return log_probs_TV.gather(1, torch.tensor(completion, device=log_probs_TV.device)[:, None])[:, 0]


def world_of(checkpoint: Path, order: str) -> World:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    rng = np.random.default_rng(5)
    return World(
        family=resolve_family(checkpoint),
        reference=AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval(),
        processor=AutoProcessor.from_pretrained(checkpoint),
        order=order,
        images=[rng.integers(0, 256, (80, 80, 3), dtype=np.uint8) for _ in range(2)],
    )


def group_of(vocabulary: int) -> ScoredGroup:
    rng = np.random.default_rng(1)
    rewards_G = np.array(REWARDS, np.float32)
    completions = Completions(
        pair_id="p",
        token_ids=tuple(tuple(int(token) for token in rng.integers(8, vocabulary, length)) for length in LENGTHS),
        texts=("",) * len(LENGTHS),
        log_probs=tuple(np.zeros(length, np.float32) for length in LENGTHS),
        finish_reasons=("stop",) * len(LENGTHS),
        sampling=Sampling(len(LENGTHS), 1.0, 1.0, 16, 1),
        encoder_version=3,
    )
    return ScoredGroup(
        pair=ImagePair("p", 0, 1, 0, 0),
        completions=completions,
        verdicts=tuple(reward == 1 for reward in REWARDS),
        rewards_G=rewards_G,
        is_correct_G=rewards_G == 1,
        advantages_G=(rewards_G - rewards_G.mean()) / rewards_G.std(ddof=1),
        describes_a=tuple(np.arange(length) < length // 2 for length in LENGTHS),
        describes_b=tuple(np.arange(length) >= length // 2 for length in LENGTHS),
    )


def record_of(family: Family, pixels: PixelBatch, values_NW: torch.Tensor) -> EncoderTokens:
    return EncoderTokens("p", values_NW.detach(), pixels.lengths, pixels.grids, family.layout.num_deepstack, 3)


def vision_parts(world: World) -> dict[str, Any]:
    """The untouched model's modules that make up our tower, by the names they have there."""
    model = world.reference.model
    if world.family.name == "internvl":
        return {"vision_tower.": model.vision_tower, "multi_modal_projector.": model.multi_modal_projector}
    return {"": model.visual}


@contextmanager
def tower_weights(world: World, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Gives the untouched model's tower other weights, by the names of our tower, for the time of the context."""
    parts = vision_parts(world)
    kept = {prefix: copy.deepcopy(part.state_dict()) for prefix, part in parts.items()}
    try:
        for prefix, part in parts.items():
            part.load_state_dict({name: weights[f"model.{prefix}{name}"] for name in kept[prefix]})
        yield
    finally:
        for prefix, part in parts.items():
            part.load_state_dict(kept[prefix])


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def end_to_end(world: World, group: ScoredGroup) -> tuple[torch.Tensor, dict[str, torch.Tensor], float]:
    """Plain autograd from pixels to L_GRPO, one whole sequence per completion: token and tower gradients, loss."""

    def losses() -> Iterator[torch.Tensor]:
        for completion, advantage in zip(group.completions.token_ids, group.advantages_G, strict=True):
            log_probs_T = world.log_probs(completion, world.reference(**world.inputs(completion)))
            yield -float(advantage) * log_probs_T.sum() / group.num_tokens

    return gradients_of(world, losses())


def gradients_of(world: World, losses: Iterator[torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor], float]:
    """Token gradients, tower gradients and sum of losses that are computed on pixels, one after the other."""
    parts = vision_parts(world)
    kept: list[list[torch.Tensor]] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        levels = [output] if isinstance(output, torch.Tensor) else [output.pooler_output]
        if world.family.layout.num_deepstack:
            levels += output.deepstack_features
        for level in levels:
            level.retain_grad()
        kept.append(levels)

    world.reference.zero_grad(set_to_none=True)
    hook = list(parts.values())[-1].register_forward_hook(keep)
    total = 0.0
    for loss in losses:
        loss.backward()
        total += loss.item()
    hook.remove()
    per_level = [sum(levels[index].grad.flatten(0, -2) for levels in kept) for index in range(len(kept[0]))]
    tower = {prefix + name: p.grad for prefix, part in parts.items() for name, p in part.named_parameters()}
    return torch.cat(per_level, dim=1), tower, total


def tower_gradients(tower: Any) -> dict[str, torch.Tensor]:
    """Gradients of our tower's parameters, on the CPU, by the names of transformers."""
    return {name: parameter.grad.cpu() for name, parameter in tower.model.named_parameters()}


def assert_gradients(
    world: World,
    gradients: dict[str, torch.Tensor],
    found: TokenGradients,
    expected_NW: torch.Tensor,
    expected_tower: dict[str, torch.Tensor],
) -> None:
    """Token gradients, level by level, and tower gradients equal the expected ones to 1e-5."""
    width, levels = world.family.layout.width, 1 + world.family.layout.num_deepstack
    for part, expected in zip(found.values_NW.split(width, 1), expected_NW.split(width, 1), strict=True):
        assert expected.norm() > 1e-5
        assert relative_error(part, expected) <= 1e-5
    assert found.values_NW.shape[1] == levels * width
    assert gradients.keys() == expected_tower.keys()
    # Biases of keys have no gradient but rounding (softmax ignores a shift): measured against the whole tower there.
    scale = torch.stack([gradient.norm() for gradient in expected_tower.values()]).norm().item()
    for name, expected in expected_tower.items():
        assert (gradients[name] - expected).norm().item() <= 1e-5 * max(expected.norm().item(), 1e-2 * scale), name
