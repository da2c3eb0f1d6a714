"""Random inputs of replay, of any size: a prompt of a given length, encoder tokens of a pair, and a group to replay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from saga_dist.models.families.base import Family
from saga_dist.types import Completions, EncoderTokens, ImagePair, ReplayTask, Sampling, ScoredGroup


def prompt_of_length(family: Family, num_tokens: int, *, side: int) -> str:
    """Returns a prompt with two images, filled up with text.

    Args:
        family: family whose tokenizer is the stand-in's.
        num_tokens: tokens of the whole prompt, images included.
        side: tokens per side of each of the two square images.
    """
    image, chat, tokenizer = family.image_placeholder, family.chat_format, family.load_tokenizer()
    before, after = f"{chat.before_user}{image}{image}", chat.after_user
    short = num_tokens - 2 * side**2 - len(tokenizer.encode(before + after, add_special_tokens=False)) + 2
    # The tokenizer makes each of these letters one token.
    return before + "".join("qx"[index % 2] for index in range(short)) + after


def random_tokens(family: Family, *, side: int, seed: int = 1) -> EncoderTokens:
    """Returns normally distributed float32 encoder tokens of a pair of square images.

    Args:
        family: family whose language model takes the tokens.
        side: tokens per side of each image.
        seed: seed of the values, and a part of the pair's id.
    """
    generator = torch.Generator().manual_seed(seed)
    patches = side * family.layout.merge_size
    return EncoderTokens(
        pair_id=f"random{seed}",
        values_NW=torch.randn(2 * side**2, family.layout.wire_width, generator=generator),
        lengths=(side**2,) * 2,
        grids=((1, patches, patches),) * 2,
        num_deepstack=family.layout.num_deepstack,
        encoder_version=0,
    )


def random_task(lengths: Sequence[int], vocabulary: int, tokens: EncoderTokens, *, seed: int = 0) -> ReplayTask:
    """Returns the task to replay a group of random completions, of which every second one is right.

    Args:
        lengths: tokens of each of the G completions.
        vocabulary: V, size of the vocabulary; ids below 8 are the tokenizer's special tokens and do not occur.
        tokens: encoder tokens of the pair.
        seed: seed of the completions.
    """
    rng = np.random.default_rng(seed)
    num_completions = len(lengths)
    rewards_G = (np.arange(num_completions) % 2).astype(np.float32)
    nothing = tuple(np.zeros(length, bool) for length in lengths)
    group = ScoredGroup(
        pair=ImagePair(tokens.pair_id, 0, 1, 0, 0),
        completions=Completions(
            pair_id=tokens.pair_id,
            token_ids=tuple(tuple(rng.integers(8, vocabulary, length).tolist()) for length in lengths),
            texts=("",) * num_completions,
            log_probs=tuple(np.zeros(length, np.float32) for length in lengths),
            finish_reasons=("stop",) * num_completions,
            sampling=Sampling(num_completions, 1.0, 1.0, max(lengths), 0),
            encoder_version=0,
        ),
        verdicts=tuple(bool(reward) for reward in rewards_G),
        rewards_G=rewards_G,
        is_correct_G=rewards_G == 1,
        advantages_G=(rewards_G - rewards_G.mean()) / 0.5,
        describes_a=nothing,
        describes_b=nothing,
    )
    return ReplayTask(group, tokens, sum(lengths), want_attention=False)
