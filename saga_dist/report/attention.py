"""Attention maps of the pooler, and of the frozen MLLM at the words of each attribute.

The pooler's weights come from the run's own ``model/``. The MLLM's attention is not recorded, so it is computed again:
a recorded completion is teacher-forced through the frozen language model with the encoder tokens of ``model/``, and the
attention of layer ``objective.kl_layer`` is taken at the tokens of each attribute's value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from saga_dist.models.encoder import Encoder
from saga_dist.models.families.base import FrozenBackbone, Grid, TokenLayout
from saga_dist.objectives.attention import attention_targets, renormalised_attention
from saga_dist.types import EncoderTokens


@dataclass(frozen=True, slots=True)
class Teacher:
    """The frozen MLLM, the prompt, and the decoder layer whose attention is computed."""

    backbone: FrozenBackbone
    """Frozen language model."""
    prompt_ids: Sequence[int]
    """Token ids of the rendered prompt, with one placeholder per image."""
    layer: int
    """Decoder layer, from 0."""


@torch.no_grad()
def pooler_maps(encoder: Encoder, images: Sequence[np.ndarray], *, batch_size: int = 32) -> list[np.ndarray]:
    """Returns the attention pooler's weights of each image, float64 [rows, columns], adding up to 1.

    The list is empty for other poolers.

    Args:
        encoder: an encoder in evaluation mode.
        images: uint8 [S, S, 3] each, at the encoder's image size.
        batch_size: number of images per forward pass.
    """
    if encoder.pooler.config.kind != "attention":
        return []
    maps: list[np.ndarray] = []
    for start in range(0, len(images), batch_size):
        pixels = encoder.tower.preprocess(images[start : start + batch_size])
        main_ND = encoder.tower.layout.main(encoder.tower(pixels))
        for tokens_ND, grid in zip(main_ND.split(list(pixels.lengths)), pixels.grids, strict=True):
            weights_N = encoder.pooler.log_weights([tokens_ND])[0].exp()
            maps.append(as_map(weights_N, grid, encoder.tower.layout))
    return maps


@torch.no_grad()
def pair_tokens(encoder: Encoder, image_a: np.ndarray, image_b: np.ndarray, *, pair_id: str) -> EncoderTokens:
    """Returns the encoder tokens of two images.

    Args:
        encoder: an encoder in evaluation mode.
        image_a: uint8 [S, S, 3] at the encoder's image size.
        image_b: uint8 [S, S, 3] at the encoder's image size.
        pair_id: id of the record.
    """
    pixels = encoder.tower.preprocess([image_a, image_b])
    return EncoderTokens(
        pair_id=pair_id,
        values_NW=encoder.tower(pixels),
        lengths=pixels.lengths,
        grids=pixels.grids,
        num_deepstack=encoder.tower.layout.num_deepstack,
        encoder_version=0,
    )


@torch.no_grad()
def teacher_attention(
    teacher: Teacher, tokens: EncoderTokens, token_ids: Sequence[int], masks: Mapping[str, tuple[int, np.ndarray]]
) -> dict[str, torch.Tensor]:
    """Returns, for each mask, the mean attention of the selected completion tokens over one image.

    Each value is float [N] and adds up to 1 over the N tokens of the image.

    Args:
        teacher: the frozen MLLM.
        tokens: encoder tokens of the pair.
        token_ids: T token ids of one completion.
        masks: name to (image, selected tokens); the image is 0 for a and 1 for b, the tokens are bool [T] with at least
            one True.
    """
    backbone = teacher.backbone
    prompt = backbone.build_layout(teacher.prompt_ids, tokens.grids)
    past = backbone.prefill(prompt, tokens.values_NW.to(backbone.device), slice(0, len(prompt.token_ids_S) - 1))
    inputs_1T = torch.tensor([[int(prompt.token_ids_S[-1]), *token_ids]], dtype=torch.int64, device=backbone.device)
    run = backbone.forward_completions(past, inputs_1T, prompt.next_position - 1, probe_layer=teacher.layer)
    assert run.probe is not None
    found = {}
    for name, (image, mask_T) in masks.items():
        # The attention of a token is the row with that token as its input, one column after the row that predicts it.
        columns_R = torch.from_numpy(np.flatnonzero(mask_T) + 1).to(backbone.device)
        rows_RN = renormalised_attention(run.probe.rows(0, columns_R)[:, prompt.images[image]])
        found[name] = attention_targets(rows_RN).cpu()
    return found


def as_map(weights_N: torch.Tensor, grid: Grid, layout: TokenLayout) -> np.ndarray:
    """Returns the weights of one image's tokens as float64 [rows, columns], summed over frames.

    Args:
        weights_N: [N] weights, in the order of the tokens.
        grid: patch grid of the image, before merging.
        layout: token sizes of the encoder.
    """
    frames, rows, columns = grid[0], grid[1] // layout.merge_size, grid[2] // layout.merge_size
    return weights_N.double().cpu().numpy().reshape(frames, rows, columns).sum(0)
