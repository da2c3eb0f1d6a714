"""Tokens that do not fit the model are refused with one line that says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saga_dist.errors import ConfigError, TokenError
from saga_dist.types import EncoderTokens, Sampling
from saga_dist.workers.engines.validation import check_context_length, validate_tokens

WIDTH, LEVELS, MERGE = 4, 2, 2


def good_tokens() -> EncoderTokens:
    """Two images of 6 and 4 tokens: grids of 4 x 6 and 4 x 4 patches, merged 2 x 2."""
    return EncoderTokens("p0", torch.zeros(10, 12), (6, 4), ((1, 4, 6), (1, 4, 4)), LEVELS, 0)


def check(tokens: EncoderTokens) -> None:
    validate_tokens(tokens, width=WIDTH, num_deepstack=LEVELS, merge_size=MERGE, dtype=torch.float32)


def with_value(value: float) -> EncoderTokens:
    tokens = good_tokens()
    tokens.values_NW[3, 7] = value
    return tokens


def test_tokens_that_fit_pass() -> None:
    check(good_tokens())


def test_tokens_without_deepstack_pass_where_the_model_has_none() -> None:
    tokens = EncoderTokens("p0", torch.zeros(10, 4), (6, 4), ((1, 4, 6), (1, 4, 4)), 0, 0)
    validate_tokens(tokens, width=4, num_deepstack=0, merge_size=2, dtype=torch.float32)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        # DeepStack left out: exactly what vLLM would run without a word.
        (
            EncoderTokens("p7", torch.zeros(10, 4), (6, 4), ((1, 4, 6), (1, 4, 4)), 0, 0),
            "expected 12 = (1 + 2 levels) * 4",
        ),
        (EncoderTokens("p7", torch.zeros(10, 12), (6, 4), ((1, 4, 6), (1, 4, 4)), 1, 0), "width 12 with 1 DeepStack"),
        (EncoderTokens("p7", torch.zeros(10, 15), (6, 4), ((1, 4, 6), (1, 4, 4)), 2, 0), "token width 15"),
        (replace(good_tokens(), grids=((1, 4, 4), (1, 4, 6))), "image 0 has 6 tokens and grid (1, 4, 4)"),
        (replace(good_tokens(), grids=((1, 4, 6), (1, 2, 4))), "image 1 has 4 tokens and grid (1, 2, 4)"),
        (replace(good_tokens(), grids=((1, 3, 8), (1, 4, 4))), "image 0"),  # 24 patches, but 3 rows do not merge
        (replace(good_tokens(), grids=((1, 4, 6), (0, 4, 4))), "image 1"),
        (replace(good_tokens(), values_NW=torch.zeros(10, 12, dtype=torch.float16)), "torch.float16"),
        (with_value(float("nan")), "1 of 120 token values are NaN"),
        (with_value(float("-inf")), "1 of 120 token values"),
        (EncoderTokens("p7", torch.zeros(6, 12), (6,), ((1, 4, 6),), 2, 0), "tokens of 1 images"),
    ],
)
def test_tokens_that_do_not_fit_are_named(tokens: EncoderTokens, said: str) -> None:
    with pytest.raises(TokenError) as refused:
        check(tokens)
    message = str(refused.value)
    assert said in message
    assert message.startswith(f"pair {tokens.pair_id}: ")
    assert "expected" in message
    assert "\n" not in message
    assert refused.value.exit_code == 2


def test_room_is_checked_to_the_token() -> None:
    sampling = Sampling(num_completions=2, temperature=0.7, top_p=1.0, max_tokens=20, seed=0)
    check_context_length(good_tokens(), sampling, num_text_tokens=14, max_model_len=44)
    with pytest.raises(
        ConfigError, match=r"14 \+ images 10 \+ rollout.max_tokens 20 = 44 .* set rollout.max_model_len = 44"
    ):
        check_context_length(good_tokens(), sampling, num_text_tokens=14, max_model_len=43)
