"""Inputs of a benchmark: pairs of built-in birds, prepared for saga_dist and for the unmodified Hugging Face model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saga_dist.config import RunConfig, load_config
from saga_dist.data.prompts import PromptSpec, render_prompt
from saga_dist.data.sampling import evaluation_pairs
from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import Family, PixelBatch, VisionTower
from saga_dist.runtime.build import build_prompt, build_splits, model_path
from saga_dist.standin import DEMO_CONFIG
from saga_dist.types import EncoderTokens, ImagePair


@dataclass(frozen=True, slots=True)
class BenchInputs:
    """A checkpoint, its tower, the prompt, and the pixels of some pairs."""

    config: RunConfig
    """Configuration of the demo with the overrides."""
    family: Family
    """Model family of the checkpoint."""
    tower: VisionTower
    """Vision tower in evaluation mode."""
    prompt: PromptSpec
    """Specification of the prompt."""
    prompt_text: str
    """Rendered prompt with one placeholder per image."""
    pairs: tuple[ImagePair, ...]
    """P pairs of test images."""
    pixels: tuple[PixelBatch, ...]
    """Preprocessed pixels per pair, with both images in one batch."""

    @torch.no_grad()
    def encode(self) -> list[EncoderTokens]:
        """Returns the tokens of every pair, from one pass of the tower over all images."""
        values_NW = self.tower(_joined(self.pixels))
        per_pair = values_NW.split([sum(pixels.lengths) for pixels in self.pixels])
        return [
            EncoderTokens(
                pair_id=pair.pair_id,
                values_NW=values.contiguous(),
                lengths=pixels.lengths,
                grids=pixels.grids,
                num_deepstack=self.family.layout.num_deepstack,
                encoder_version=0,
            )
            for pair, pixels, values in zip(self.pairs, self.pixels, per_pair, strict=True)
        ]

    def reference(self) -> Any:
        """Returns the unmodified Hugging Face model in float32 and evaluation mode."""
        from transformers import Qwen3VLForConditionalGeneration
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = Qwen3VLForConditionalGeneration.from_pretrained(
            self.family.files.name, dtype=torch.float32, attn_implementation="sdpa"
        )
        return model.eval()

    def prompt_ids(self) -> list[int]:
        """Returns the token ids of the prompt with one placeholder per encoder token; they are the same for all pairs,
        because all images have one size."""
        tokenizer = self.family.load_tokenizer()
        ids = tokenizer.encode(self.prompt_text, add_special_tokens=False)
        lengths = iter(self.pixels[0].lengths)
        expanded: list[int] = []
        for token_id in ids:
            expanded += [token_id] * (next(lengths) if token_id == self.family.config["image_token_id"] else 1)
        return expanded

    def model_inputs(self, pairs: Sequence[int], completions: Sequence[Sequence[int]] | None = None) -> dict[str, Any]:
        """Returns the keyword arguments of the Hugging Face model: ids, mask, pixels and grids, one row per pair.

        Args:
            pairs: indices of the pairs.
            completions: token ids to append to the prompt, one sequence per row, all of equal length; None: none.
        """
        prompt = self.prompt_ids()
        ids_BS = torch.tensor([prompt + list(tail) for tail in completions or [()] * len(pairs)])
        pixels = _joined([self.pixels[index] for index in pairs])
        return {
            "input_ids": ids_BS,
            "attention_mask": torch.ones_like(ids_BS),
            "pixel_values": pixels.pixel_values,
            "image_grid_thw": torch.tensor(pixels.grids),
            "mm_token_type_ids": (ids_BS == self.family.config["image_token_id"]).int(),
        }

    @torch.no_grad()
    def generate(
        self, reference: Any, pairs: Sequence[int], *, max_tokens: int, num_completions: int
    ) -> list[tuple[int, ...]]:
        """Returns the completions of one batch of pairs by Hugging Face ``generate``, up to each row's end token.

        Args:
            reference: the Hugging Face model.
            pairs: indices of the pairs.
            max_tokens: longest completion in tokens.
            num_completions: completions per pair, at temperature 0.7 and top-p 0.95; 0: one greedy completion.
        """
        inputs = self.model_inputs(pairs)
        sampled = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "top_k": 0}
        sampling = {**sampled, "num_return_sequences": num_completions} if num_completions else {"do_sample": False}
        ids_BS = reference.generate(
            **inputs, **sampling, max_new_tokens=max_tokens, suppress_tokens=list(self.family.forbidden_token_ids)
        )
        ends = set(reference.generation_config.eos_token_id)
        return [_up_to_end(row, ends) for row in ids_BS[:, inputs["input_ids"].shape[1] :].tolist()]


def load_inputs(folder: Path | None, num_pairs: int, overrides: Sequence[str] = ()) -> BenchInputs:
    """Returns pairs of test images of the built-in birds, prepared for a checkpoint.

    Args:
        folder: folder of the checkpoint; None: the built-in stand-in.
        num_pairs: number of pairs.
        overrides: ``section.key=value`` texts over the demo's configuration.
    """
    path = [] if folder is None else [f'model.path="{folder}"']
    config = load_config(DEMO_CONFIG, [*path, *overrides])
    family = resolve_family(model_path(config))
    tower = family.load_tower().eval()
    images = build_splits(config.data, seed=0).test
    pairs = evaluation_pairs(images.labels_I, num_pairs, 7)
    prompt = build_prompt(config)
    image = family.image_placeholder
    return BenchInputs(
        config=config,
        family=family,
        tower=tower,
        prompt=prompt,
        prompt_text=render_prompt(prompt, image_a=image, image_b=image, chat=family.chat_format),
        pairs=pairs,
        pixels=tuple(tower.preprocess([images.image(pair.image_a), images.image(pair.image_b)]) for pair in pairs),
    )


def _joined(pixels: Sequence[PixelBatch]) -> PixelBatch:
    return PixelBatch(
        pixel_values=torch.cat([batch.pixel_values for batch in pixels]),
        grids=tuple(grid for batch in pixels for grid in batch.grids),
        lengths=tuple(length for batch in pixels for length in batch.lengths),
    )


def _up_to_end(ids: Sequence[int], ends: set[int]) -> tuple[int, ...]:
    for position, token_id in enumerate(ids):
        if token_id in ends:
            return tuple(ids[: position + 1])
    return tuple(ids)
