"""Data of the rollout viewer: recorded groups with their images and the tokens of every completion.

A run can have thousands of groups, so a page holds a bounded, evenly spaced selection. The data are JSON values:
strings escaped by ``shown``, numbers, and data URIs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from saga_dist.config import RunConfig
from saga_dist.data.image_sets import ImageSet
from saga_dist.data.images import augment
from saga_dist.objectives.spans import Decoder, token_offsets_from_decode
from saga_dist.report.images import heat, picture
from saga_dist.report.sources import RecordedGroup, evenly
from saga_dist.report.text import MAX_COMPLETION, shown, shown_name
from saga_dist.types import ScoredGroup
from saga_dist.utils.pair_ids import micro_batch_of
from saga_dist.utils.rng import counter_generator, counter_seed

_DECIMALS = 3
_GAP_DECIMALS = 5
_GROUPS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Overlay:
    """Attention maps of both images of a pair."""

    name: str
    """Source of the attention, e.g. an attribute."""
    heats: tuple[str, str]
    """Data URIs of the maps of image a and image b; an empty string for a missing map."""


class PairImages(Protocol):
    """Provides the images of a group."""

    def images(self, group: ScoredGroup) -> list[np.ndarray]:
        """Returns images a and b, uint8 [H, W, 3]."""

    def class_name(self, label: int) -> str:
        """Returns the name of a training class."""


class TrainingImages:
    """Images of recorded pairs with the augmentation of training, which depends only on counters and can be repeated.

    Args:
        config: configuration of the run.
        train: training images of the run.
    """

    def __init__(self, config: RunConfig, train: ImageSet) -> None:
        self._config, self._train = config, train

    def images(self, group: ScoredGroup) -> list[np.ndarray]:
        """Returns images a and b, uint8 [H, W, 3]; without augmentation if the pair id has no micro-batch number."""
        indices = (group.pair.image_a, group.pair.image_b)
        place = micro_batch_of(group.pair.pair_id)
        if place is None:
            return [self._train.image(index) for index in indices]
        seed = counter_seed(self._config.run.seed, "augmentation", *place)
        data = self._config.data
        return [
            augment(
                self._train.image(index),
                counter_generator(seed, index),
                flip=data.flip,
                shift=data.shift,
                color_jitter=data.color_jitter,
                crop=data.crop,
            )
            for index in indices
        ]

    def class_name(self, label: int) -> str:
        """Returns the name of a training class."""
        return self._train.class_names[label]


def select_groups(groups: Sequence[RecordedGroup], limit: int) -> list[RecordedGroup]:
    """Returns at most ``limit`` evenly spaced groups, in the given order."""
    return [groups[index] for index in evenly(len(groups), limit)]


def viewer_data(
    groups: Sequence[RecordedGroup],
    *,
    prompt: str,
    tokenizer: Decoder | None,
    pictures: PairImages | None,
    maps: Callable[[list[np.ndarray]], list[np.ndarray]],
    overlays: Mapping[str, Sequence[Overlay]],
    attributes: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """Returns the JSON values that ``viewer.js`` reads.

    Args:
        groups: groups to show.
        prompt: the prompt of all of them.
        tokenizer: tokenizer of the MLLM, to split completions into tokens; None to show them as one text.
        pictures: provides the images; None to show no images.
        maps: function from images, uint8 [H, W, 3], to the pooler's attention maps; returns [] without an attention
            pooler.
        overlays: pair id to further overlays (see ``teacher.pair_overlays``).
        attributes: pair id to the rows of its attribute table (see ``agreement.agreement_rows``).
    """
    images = _images([recorded.group for recorded in groups], pictures, maps)
    return {
        "prompt": shown(prompt),
        "groups": [
            {
                **group_data(recorded, tokenizer, pictures),
                "attributes": attributes.get(recorded.group.pair.pair_id, []),
                "images": pair,
                "overlays": [
                    {"name": overlay.name, "heat": list(overlay.heats)}
                    for overlay in overlays.get(recorded.group.pair.pair_id, [])
                ],
            }
            for recorded, pair in zip(groups, images, strict=True)
        ],
    }


def group_data(recorded: RecordedGroup, tokenizer: Decoder | None, pictures: PairImages | None) -> dict[str, Any]:
    """Returns the JSON values of one group, without images and overlays.

    Args:
        recorded: the group.
        tokenizer: tokenizer of the MLLM, to split completions into tokens; None to show them as one text.
        pictures: provides the names of classes; None to show their numbers.
    """
    group = recorded.group
    pair, completions = group.pair, group.completions
    return {
        "id": shown_name(pair.pair_id),
        "step": recorded.step,
        "version": completions.encoder_version,
        "staleness": recorded.staleness,
        "same": pair.same,
        "contributes": group.contributes,
        "classes": [_class_name(pictures, label) for label in (pair.label_a, pair.label_b)],
        "temperature": completions.sampling.temperature,
        "completions": [_completion(group, index, tokenizer) for index in range(len(completions.texts))],
    }


def token_pieces(tokenizer: Decoder, token_ids: Sequence[int], text: str) -> list[str] | None:
    """Returns the text of each token, joined equal to ``text``; None when the tokenizer decodes the ids differently."""
    ends = token_offsets_from_decode(tokenizer, token_ids)[:, 1].tolist()
    if (ends[-1] if ends else 0) != len(text) or ends != sorted(ends):
        return None
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def engine_gaps(group: ScoredGroup, index: int) -> np.ndarray | None:
    """Returns log p of replay minus log p of the engine, float64 [T], of one completion; None without a replay.

    Both are for the same completion and encoder tokens, so the gap is the numerical difference of the two programs.

    Args:
        group: a recorded group.
        index: index of the completion within the group.
    """
    if not group.replayed:
        return None
    return np.asarray(group.replayed[index], np.float64) - np.asarray(group.completions.log_probs[index], np.float64)


def _completion(group: ScoredGroup, index: int, tokenizer: Decoder | None) -> dict[str, Any]:
    completions = group.completions
    text, log_probs_T = completions.texts[index], np.asarray(completions.log_probs[index], np.float64)
    pieces = token_pieces(tokenizer, completions.token_ids[index], text) if tokenizer is not None else None
    data: dict[str, Any] = {
        "verdict": group.verdicts[index],
        "right": group.verdicts[index] == group.pair.same,
        "reward": _rounded(group.rewards_G[index]),
        "advantage": _rounded(group.advantages_G[index]),
        "tokens": len(completions.token_ids[index]),
        "finish": shown_name(completions.finish_reasons[index]),
        "mean_log_prob": _rounded(log_probs_T.mean()) if len(log_probs_T) else 0.0,
    }
    gaps_T = engine_gaps(group, index)
    if gaps_T is not None:
        data["mean_gap"] = _rounded(np.abs(gaps_T).mean(), _GAP_DECIMALS) if len(gaps_T) else 0.0
    if pieces is None:
        return {**data, "text": shown(text)}
    kept, length = 0, 0
    while kept < len(pieces) and length + len(pieces[kept]) <= MAX_COMPLETION:
        length += len(pieces[kept])
        kept += 1
    return {
        **data,
        "pieces": [shown(piece) for piece in pieces[:kept]],
        "log_probs": [_rounded(value) for value in log_probs_T[:kept]],
        "gaps": None if gaps_T is None else [_rounded(value, _GAP_DECIMALS) for value in gaps_T[:kept]],
        "describes": [
            1 if in_a else 2 if in_b else 0
            for in_a, in_b in zip(group.describes_a[index][:kept], group.describes_b[index][:kept], strict=True)
        ],
        "left_out": len(text) - length,
    }


def _images(
    groups: Sequence[ScoredGroup], pictures: PairImages | None, maps: Callable[[list[np.ndarray]], list[np.ndarray]]
) -> list[list[dict[str, str]]]:
    """Returns the two images of each group; only a few groups at a time are in memory as pixels."""
    if pictures is None:
        return [[] for _ in groups]
    shown_images: list[dict[str, str]] = []
    for start in range(0, len(groups), _GROUPS_AT_ONCE):
        images = [image for group in groups[start : start + _GROUPS_AT_ONCE] for image in pictures.images(group)]
        heats = [heat(weights_RC) for weights_RC in maps(images)] or [""] * len(images)
        shown_images += [
            {"picture": picture(image), "heat": overlay} for image, overlay in zip(images, heats, strict=True)
        ]
    return [shown_images[start : start + 2] for start in range(0, len(shown_images), 2)]


def _class_name(pictures: PairImages | None, label: int) -> str:
    return f"class {label}" if pictures is None else shown_name(pictures.class_name(label))


def _rounded(value: float, decimals: int = _DECIMALS) -> float:
    """Returns a finite number with few digits; NaN becomes 0, and -inf, as of a log-probability, becomes -99."""
    return round(float(np.nan_to_num(value, nan=0.0, neginf=-99.0, posinf=99.0)), decimals)
