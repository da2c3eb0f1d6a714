"""Checks of encoder tokens before an engine sees them.

vLLM checks none of this: a wrong width runs with DeepStack silently dropped or kills the engine, a wrong length makes
the next request hang, and NaN yields garbage text. Here each is one line that names the pair.
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
    """Returns when the tokens fit the model.

    Args:
        tokens: the tokens of one pair.
        width: D, hidden size of the language model.
        num_deepstack: L, DeepStack levels of the model (0 without DeepStack).
        merge_size: patches along one side that the merger joins into one token.
        dtype: dtype of the values on the wire.
        num_images: images of the prompt.

    Raises:
        TokenError: wrong count, width, grid, dtype, or a value that is not finite.
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


def check_room(tokens: EncoderTokens, sampling: Sampling, *, num_text_tokens: int, max_model_len: int) -> None:
    """Returns when prompt, images and the longest completion fit into the context.

    Without this check completions would be cut short without a word, and count as wrong.

    Args:
        tokens: the tokens of one pair.
        sampling: holds the longest completion.
        num_text_tokens: tokens of the prompt without image placeholders.
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
    if len(grid) != 3 or min(grid) < 1:
        return False
    frames, rows, columns = grid
    return not (rows % merge_size or columns % merge_size) and frames * rows * columns == length * merge_size**2
