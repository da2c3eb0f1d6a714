"""The MLLM's attention per attribute, for a few recorded groups: figures of the page and overlays of the viewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from saga_dist.config import RunConfig
from saga_dist.data.prompts import PromptSpec
from saga_dist.models.encoder import Encoder
from saga_dist.objectives.spans import token_masks, token_offsets_from_decode
from saga_dist.report.attention import Teacher, as_map, pair_tokens, pooler_maps, teacher_attention
from saga_dist.report.attribute_stats import attribute_spans
from saga_dist.report.images import heat, picture
from saga_dist.report.sources import RecordedGroup, evenly
from saga_dist.report.text import shown_name
from saga_dist.report.viewer import Overlay, PairImages
from saga_dist.runtime.build import build_family, build_prompt, prompt_text, resolve_device, set_threads, torch_dtype
from saga_dist.types import ScoredGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POOLER, WHOLE = "pooler", "whole description"


@dataclass(frozen=True, slots=True)
class AttentionFigure:
    """One image with everything that looked at it."""

    title: str
    picture: str
    overlays: list[tuple[str, str, str]]
    """(name, value in the completion, data URI): the pooler, the whole description, each attribute."""


class TeacherAttention:
    """Reads the frozen MLLM's attention for groups of a run. Loads its language model: large models want a GPU.

    Args:
        config: of the run.
        encoder: the run's.
        pictures: gives the images of a pair.
    """

    def __init__(self, config: RunConfig, encoder: Encoder, pictures: PairImages) -> None:
        set_threads(config)
        family = build_family(config)
        self._encoder, self._pictures = encoder, pictures
        self._spec = build_prompt(config)
        self._tokenizer: PreTrainedTokenizerBase = family.load_tokenizer()
        self._teacher = Teacher(
            family.load_backbone(dtype=torch_dtype(config), device=resolve_device(config.model.device)),
            self._tokenizer.encode(prompt_text(config, family), add_special_tokens=False),
            config.objective.kl_layer,
        )

    def figures(self, recorded: RecordedGroup) -> list[AttentionFigure]:
        """Returns a figure for each of the two images, [] where no correct completion describes both."""
        group = recorded.group
        index = rewarded_description(group)
        if index is None:
            return []
        pair, layout = group.pair, self._encoder.tower.layout
        images = self._pictures.images(group)
        tokens = pair_tokens(self._encoder, images[0], images[1], pair_id=pair.pair_id)
        masks, words = attribute_masks(group, index, self._spec, self._tokenizer)
        found = teacher_attention(self._teacher, tokens, group.completions.token_ids[index], masks)
        poolers = pooler_maps(self._encoder, images)
        figures = []
        for side, (image, label) in enumerate(zip(images, (pair.label_a, pair.label_b), strict=True)):
            overlays = [(POOLER, "", heat(poolers[side]))] if poolers else []
            overlays += [
                (shown_name(name.partition("/")[2]), words[name], heat(as_map(weights_N, tokens.grids[side], layout)))
                for name, weights_N in found.items()
                if masks[name][0] == side
            ]
            title = f"{shown_name(self._pictures.class_name(label))} · step {recorded.step}, image {'ab'[side]}"
            figures.append(AttentionFigure(title, picture(image), overlays))
        return figures


def pair_overlays(figures: Sequence[AttentionFigure]) -> list[Overlay]:
    """Returns what the viewer lays over the two images of a group; it has the pooler's already."""
    heats = [{name: uri for name, _, uri in figure.overlays} for figure in figures]
    names = [name for name in dict.fromkeys(name for side in heats for name in side) if name != POOLER]
    return [Overlay(name, (heats[0].get(name, ""), heats[1].get(name, ""))) for name in names]


def choose_described(groups: Sequence[RecordedGroup], limit: int) -> list[RecordedGroup]:
    """Returns at most ``limit`` groups that have a correct completion with both descriptions, evenly over the run."""
    able = [recorded for recorded in groups if rewarded_description(recorded.group) is not None]
    return [able[index] for index in evenly(len(able), limit)]


def rewarded_description(group: ScoredGroup) -> int | None:
    """Returns the first completion that has an attention target: correct, both images described; None without one."""
    for index, is_correct in enumerate(group.is_correct_G):
        if is_correct and group.describes_a[index].any() and group.describes_b[index].any():
            return index
    return None


def attribute_masks(
    group: ScoredGroup, index: int, spec: PromptSpec, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, tuple[int, np.ndarray]], dict[str, str]]:
    """Returns for ``a/bill``, ``b/bill``, … (image, bool [T] of the tokens of its value), and what the value says.

    The whole description of each image comes first. Attributes whose value has no token of its own are left out.

    Args:
        group: recorded.
        index: of the completion.
        spec: names keys and attributes.
        tokenizer: that the completion was sampled with.
    """
    text = group.completions.texts[index]
    offsets_T2: torch.Tensor = token_offsets_from_decode(tokenizer, group.completions.token_ids[index])
    masks: dict[str, tuple[int, np.ndarray]] = {}
    words: dict[str, str] = {}
    sides = ((spec.key_a, group.describes_a[index]), (spec.key_b, group.describes_b[index]))
    for image, (key, described_T) in enumerate(sides):
        masks[f"{'ab'[image]}/{WHOLE}"], words[f"{'ab'[image]}/{WHOLE}"] = (image, described_T), ""
        spans = attribute_spans(text, key)
        for attribute in spec.vocabulary.attribute_keys:
            if attribute not in spans:
                continue
            mask_T = token_masks(offsets_T2, spans[attribute]).numpy()
            if mask_T.any():
                name = f"{'ab'[image]}/{attribute}"
                masks[name] = (image, mask_T)
                words[name] = shown_name(text[spans[attribute].start : spans[attribute].end].strip('"'))
    return masks, words
