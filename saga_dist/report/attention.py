"""Where the pooler looks, and where the frozen MLLM looked while it wrote the words of an attribute.

The pooler's weights come from the run's own ``model/``. The MLLM's attention is not recorded, so it is computed again:
a recorded completion is teacher-forced through the frozen language model on the tokens that ``model/`` makes of the two
images today, and the rows of layer ``objective.kl_layer`` are read at the tokens of each attribute's value.
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
    """The frozen MLLM with all that is needed to ask where it looked."""

    backbone: FrozenBackbone
    prompt_ids: Sequence[int]
    """The rendered prompt, one placeholder per image."""
    layer: int
    """Decoder layer, from 0."""


@torch.no_grad()
def pooler_maps(encoder: Encoder, images: Sequence[np.ndarray], *, batch_size: int = 32) -> list[np.ndarray]:
    """Returns the attention pooler's weights [rows, columns] of each image, adding up to 1; none for other poolers.

    Args:
        encoder: in evaluation mode.
        images: uint8 [S, S, 3] at the encoder's image size.
        batch_size: images at once.
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
    """Returns what the encoder says about two images."""
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
    """Returns, for each mask, the mean attention [N] of its tokens over the image it names.

    Args:
        teacher: the frozen MLLM.
        tokens: of the pair.
        token_ids: [T] of one completion.
        masks: name to (image: 0 for a, 1 for b; bool [T]); each selects at least one token.
    """
    backbone = teacher.backbone
    prompt = backbone.build_layout(teacher.prompt_ids, tokens.grids)
    past = backbone.prefill(prompt, tokens.values_NW.to(backbone.device), slice(0, len(prompt.token_ids_S) - 1))
    inputs_1T = torch.tensor([[int(prompt.token_ids_S[-1]), *token_ids]], dtype=torch.int64, device=backbone.device)
    run = backbone.forward_completions(past, inputs_1T, prompt.next_position - 1, probe_layer=teacher.layer)
    assert run.probe is not None
    found = {}
    for name, (image, mask_T) in masks.items():
        # A token looks from the position where it is read, one column after the one that predicts it.
        columns_R = torch.from_numpy(np.flatnonzero(mask_T) + 1).to(backbone.device)
        rows_RN = renormalised_attention(run.probe.rows(0, columns_R)[:, prompt.images[image]])
        found[name] = attention_targets(rows_RN).cpu()
    return found


def as_map(weights_N: torch.Tensor, grid: Grid, layout: TokenLayout) -> np.ndarray:
    """Returns weights of one image's tokens as float64 [rows, columns]; several frames are added up."""
    frames, rows, columns = grid[0], grid[1] // layout.merge_size, grid[2] // layout.merge_size
    return weights_N.double().cpu().numpy().reshape(frames, rows, columns).sum(0)
