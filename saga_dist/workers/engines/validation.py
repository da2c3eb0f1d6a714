"""Checks of encoder tokens before they reach an engine.

vLLM checks none of this. With a wrong width it silently drops DeepStack or the engine dies, with a wrong length the
next request hangs, and NaN gives meaningless text. Here each of these is an error of one line that names the pair.
"""

from __future__ import annotations

import torch

from saga_dist.errors import ConfigError, TokenError
from saga_dist.types import EncoderTokens, Grid, Sampling


def validate_tokens(
    tokens: EncoderTokens,
    *,
    width: int,
    num_deepstack: int,
    merge_size: int,
    dtype: torch.dtype,
    num_images: int = 2,
) -> None:
    """Checks that the tokens of a pair fit the model.

    Args:
        tokens: encoder tokens of one pair.
        width: D, hidden size of the language model.
        num_deepstack: L, number of DeepStack levels of the model (0 without DeepStack).
        merge_size: number of patches along one side that the merger joins into one token.
        dtype: dtype of the values on the wire.
        num_images: number of images in the prompt.

    Raises:
        TokenError: number of images, width, grid or dtype is wrong, or a value is not finite.
    """
    where = f"pair {tokens.pair_id}"
    if len(tokens.lengths) != num_images:
        raise TokenError(
            f"tokens of {len(tokens.lengths)} images",
            where=where,
            expected=f"{num_images}, one per image of the prompt",
            fix="pass the tokens of image a, then of image b",
        )
    wire_width = tokens.values_NW.shape[1]
    if wire_width != (1 + num_deepstack) * width or tokens.num_deepstack != num_deepstack:
        raise TokenError(
            f"token width {wire_width} with {tokens.num_deepstack} DeepStack levels",
            where=where,
            expected=f"{(1 + num_deepstack) * width} = (1 + {num_deepstack} levels) * {width}",
            fix="encode with the tower of the model that reads the tokens, DeepStack maps included",
        )
    for image, (length, grid) in enumerate(zip(tokens.lengths, tokens.grids, strict=True)):
        if not _fits(grid, length, merge_size):
            raise TokenError(
                f"image {image} has {length} tokens and grid {tuple(grid)}",
                where=where,
                expected=f"frames * rows * columns / {merge_size}^2 tokens, rows and columns multiples of {merge_size}",
                fix="pass the patch grid before merging, as the image processor returns it",
            )
    if tokens.values_NW.dtype != dtype:
        raise TokenError(
            f"token values are {tokens.values_NW.dtype}",
            where=where,
            expected=str(dtype),
            fix="convert them on the learner",
        )
    if not bool(torch.isfinite(tokens.values_NW).all()):
        count = int((~torch.isfinite(tokens.values_NW)).sum())
        raise TokenError(
            f"{count} of {tokens.values_NW.numel()} token values are NaN or infinite",
            where=where,
            expected="finite values",
            fix="the encoder has diverged: lower its learning rate or resume from an earlier checkpoint",
        )


def check_context_length(
    tokens: EncoderTokens, sampling: Sampling, *, num_text_tokens: int, max_model_len: int
) -> None:
    """Checks that prompt, images and the longest completion fit into the engine's context.

    Without this check, completions would be truncated silently, and scored as wrong.

    Args:
        tokens: encoder tokens of one pair.
        sampling: sampling parameters, with the length of the longest completion.
        num_text_tokens: number of tokens of the prompt without image placeholders.
        max_model_len: context length of the engine, in tokens.

    Raises:
        ConfigError: they do not fit.
    """
    num_image_tokens = sum(tokens.lengths)
    needed = num_text_tokens + num_image_tokens + sampling.max_tokens
    if needed > max_model_len:
        raise ConfigError(
            f"prompt {num_text_tokens} + images {num_image_tokens} + rollout.max_tokens {sampling.max_tokens} "
            f"= {needed} tokens",
            where=f"pair {tokens.pair_id}",
            expected=f"at most rollout.max_model_len = {max_model_len}",
            fix=f"set rollout.max_model_len = {needed} or lower rollout.max_tokens",
        )


def _fits(grid: Grid, length: int, merge_size: int) -> bool:
    """Returns True when an image with this patch grid has ``length`` tokens."""
    if len(grid) != 3 or min(grid) < 1:
        return False
    frames, rows, columns = grid
    return not (rows % merge_size or columns % merge_size) and frames * rows * columns == length * merge_size**2
