"""The frozen MLLM's attention per attribute for recorded groups: figures on the page and overlays in the viewer."""

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
from saga_dist.runtime.build import build_family, build_prompt, prompt_text, set_threads, torch_dtype
from saga_dist.runtime.devices import resolve_device
from saga_dist.types import ScoredGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POOLER, WHOLE = "pooler", "whole description"
"""Names of the attention of the pooler, and of the MLLM averaged over a whole description."""


@dataclass(frozen=True, slots=True)
class AttentionFigure:
    """One image with its attention maps."""

    title: str
    """Class, step and side (a or b) of the image."""
    picture: str
    """Data URI of the image."""
    overlays: list[tuple[str, str, str]]
    """(name, value in the completion, data URI of the map) for the pooler, the whole description and each attribute."""


class TeacherAttention:
    """Computes the frozen MLLM's attention for groups of a run.

    The language model is loaded on ``model.device``; a large one needs a GPU.

    Args:
        config: configuration of the run.
        encoder: encoder of the run.
        pictures: provides the images of a pair.
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
        """Returns one figure for each of the two images; [] when no correct completion describes both."""
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
    """Returns the overlays of a group for the viewer, without the pooler's, which the viewer has from ``viewer_data``.

    Args:
        figures: the figures of the two images of the group.
    """
    heats = [{name: uri for name, _, uri in figure.overlays} for figure in figures]
    names = [name for name in dict.fromkeys(name for side in heats for name in side) if name != POOLER]
    return [Overlay(name, (heats[0].get(name, ""), heats[1].get(name, ""))) for name in names]


def choose_described(groups: Sequence[RecordedGroup], limit: int) -> list[RecordedGroup]:
    """Returns at most ``limit`` evenly spaced groups that have a correct completion with both descriptions."""
    described = [recorded for recorded in groups if rewarded_description(recorded.group) is not None]
    return [described[index] for index in evenly(len(described), limit)]


def rewarded_description(group: ScoredGroup) -> int | None:
    """Returns the index of the first completion with an attention target (correct, both images described), or None."""
    for index, is_correct in enumerate(group.is_correct_G):
        if is_correct and group.describes_a[index].any() and group.describes_b[index].any():
            return index
    return None


def attribute_masks(
    group: ScoredGroup, index: int, spec: PromptSpec, tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, tuple[int, np.ndarray]], dict[str, str]]:
    """Returns the tokens of each described attribute, and the text of its value.

    The keys of both results are ``a/bill``, ``b/bill`` and so on; the whole description of each image comes first, with
    an empty text. The tokens are (image, bool [T]), the image being 0 for a and 1 for b. Attributes whose value has no
    token of its own are left out.

    Args:
        group: the group.
        index: index of the completion within the group.
        spec: the prompt, for the JSON keys and attributes.
        tokenizer: tokenizer of the MLLM that sampled the completion.
    """
    text = group.completions.texts[index]
    offsets_T2: torch.Tensor = token_offsets_from_decode(tokenizer, group.completions.token_ids[index])
    masks: dict[str, tuple[int, np.ndarray]] = {}
    words: dict[str, str] = {}
    sides = ((spec.key_a, group.describes_a[index]), (spec.key_b, group.describes_b[index]))
    for image, (key, described_T) in enumerate(sides):
        masks[f"{'ab'[image]}/{WHOLE}"], words[f"{'ab'[image]}/{WHOLE}"] = (image, described_T), ""
        spans = attribute_spans(text, key, verdict_key=spec.verdict_key, keys=spec.keys)
        for attribute in spec.vocabulary.attribute_keys:
            if attribute not in spans:
                continue
            mask_T = token_masks(offsets_T2, spans[attribute]).numpy()
            if mask_T.any():
                name = f"{'ab'[image]}/{attribute}"
                masks[name] = (image, mask_T)
                words[name] = shown_name(text[spans[attribute].start : spans[attribute].end].strip('"'))
    return masks, words
