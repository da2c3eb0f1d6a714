"""Operations of one group and of one image: two for each weight a token meets, four for each query-key product.

A query-key product costs two operations per unit of width for the score and two for the value. Attention is causal in
the decoder. Through frozen weights a backward pass is as dear as the forward (the gradient of inputs alone), through
trainable ones twice as dear; attention's own backward is twice its forward either way.
"""

from __future__ import annotations

from dataclasses import dataclass

from saga_dist.estimate.shapes import DecoderShape, TowerShape
from saga_dist.estimate.token_counts import TokenCounts

OPTIMIZER_BYTES = 36
"""Memory traffic per trainable parameter and step: AdamW reads weight, gradient and two moments and writes three of
them (28), clipping reads and writes the gradient (8)."""


@dataclass(frozen=True, slots=True)
class GroupOperations:
    """Of one pair with its G completions."""

    prefill: float
    decode: float
    replay_forward: float
    replay_backward: float

    @property
    def rollout(self) -> float:
        """Prefill and decode."""
        return self.prefill + self.decode

    def replay(self, *, stale: bool) -> float:
        """Returns all of replay; stale groups are also read on the tokens they were sampled from."""
        return self.replay_forward * (2 if stale else 1) + self.replay_backward


def encoder_forward(tower: TowerShape) -> float:
    """Returns the operations of one image through the tower."""
    linear = tower.patch_products * tower.patches + tower.token_products * tower.tokens
    return 2.0 * linear + 4.0 * tower.attention_products


def encoder_backward(tower: TowerShape, *, checkpointing: bool) -> float:
    """Returns the operations of one image's backward pass; checkpointing runs the forward pass again."""
    return encoder_forward(tower) * (3 if checkpointing else 2)


def group_operations(decoder: DecoderShape, token_counts: TokenCounts, group_size: int) -> GroupOperations:
    """Returns the operations of one group.

    Args:
        decoder: the frozen language model.
        words: token counts.
        group_size: G.
    """
    completion = token_counts.completion
    prompt_products = _causal(token_counts.prompt) - _causal(token_counts.cached)
    completion_products = group_size * (completion * token_counts.prompt + _causal(completion))
    linear, head, attention = 2.0 * decoder.layer_products, 2.0 * decoder.head_products, 4.0 * decoder.attention_width
    replayed = token_counts.prefix + group_size * (completion + 1)
    replay_linear = linear * replayed + head * group_size * completion
    # The prompt's last token is read with every completion.
    replay_attention = attention * (prompt_products + completion_products + group_size * token_counts.prompt)
    return GroupOperations(
        prefill=linear * (token_counts.prompt - token_counts.cached) + attention * prompt_products,
        decode=group_size * completion * (linear + head) + attention * completion_products,
        replay_forward=replay_linear + replay_attention,
        replay_backward=replay_linear + 2 * replay_attention,
    )


def _causal(tokens: float) -> float:
    """Query-key products of a sequence with itself."""
    return tokens * (tokens + 1) / 2
