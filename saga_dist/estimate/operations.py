"""Floating-point operations of one image and of one group.

A token costs two operations for each weight that it is multiplied with. A query-key pair costs four operations per unit
of attention width: two for the score and two for the weighted value. Attention is causal in the decoder. A backward
pass through frozen weights costs as much as the forward pass (the gradient of the inputs alone), one through trainable
weights twice as much. The backward pass of attention itself always costs twice its forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from saga_dist.estimate.shapes import DecoderShape, TowerShape
from saga_dist.estimate.token_counts import TokenCounts

OPTIMIZER_BYTES = 36
"""Bytes of memory traffic per trainable parameter and optimizer step.

AdamW reads weight, gradient and two moments and writes weight and moments (28); clipping reads and writes the gradient
(8).
"""


@dataclass(frozen=True, slots=True)
class GroupOperations:
    """Floating-point operations of one group: one pair with its G completions."""

    prefill: float
    """Operations of the engine on the prompt, without the part in its prefix cache."""
    decode: float
    """Operations of the engine while it generates all G completions."""
    replay_forward: float
    """Operations of one forward pass of replay."""
    replay_backward: float
    """Operations of the backward pass of replay."""

    @property
    def rollout(self) -> float:
        """Operations of prefill and decode."""
        return self.prefill + self.decode

    def replay(self, *, stale: bool) -> float:
        """Returns the operations of replay; a stale group has a second forward pass, on the tokens that it was sampled
        from."""
        return self.replay_forward * (2 if stale else 1) + self.replay_backward


def encoder_forward(tower: TowerShape) -> float:
    """Returns the operations of the tower's forward pass on one image."""
    return _encoder_linear(tower) + 4.0 * tower.attention_macs


def encoder_backward(tower: TowerShape, *, checkpointing: bool) -> float:
    """Returns the operations of the tower's backward pass on one image; checkpointing repeats the forward pass.

    It runs through the blocks that train; with low-rank updates through all of them, without gradients of the weights.
    """
    passes = encoder_forward(tower) * (3 if checkpointing else 2)
    spared = _encoder_linear(tower) if tower.trained.low_rank else 0.0
    return (passes - spared) * (tower.trained.blocks / tower.layers)


def _encoder_linear(tower: TowerShape) -> float:
    """Returns the operations of the tower's matrix products on one image, without attention."""
    return 2.0 * (tower.patch_matmul_params * tower.patches + tower.token_matmul_params * tower.tokens)


def group_operations(decoder: DecoderShape, token_counts: TokenCounts, group_size: int) -> GroupOperations:
    """Returns the operations of one group.

    Args:
        decoder: sizes of the frozen language model.
        token_counts: tokens of prompt and completions.
        group_size: G, completions per pair.
    """
    completion = token_counts.completion
    prompt_pairs = _causal_pairs(token_counts.prompt) - _causal_pairs(token_counts.cached)
    completion_pairs = group_size * (completion * token_counts.prompt + _causal_pairs(completion))
    linear, output = 2.0 * decoder.layer_matmul_params, 2.0 * decoder.output_matmul_params
    attention = 4.0 * decoder.attention_width
    replayed = token_counts.group_prefix + group_size * (completion + 1)
    replay_linear = linear * replayed + output * group_size * completion
    # The prompt's last token runs with every completion, because its output predicts the first generated token.
    replay_attention = attention * (prompt_pairs + completion_pairs + group_size * token_counts.prompt)
    return GroupOperations(
        prefill=linear * (token_counts.prompt - token_counts.cached) + attention * prompt_pairs,
        decode=group_size * completion * (linear + output) + attention * completion_pairs,
        replay_forward=replay_linear + replay_attention,
        replay_backward=replay_linear + 2 * replay_attention,
    )


def _causal_pairs(tokens: float) -> float:
    """Returns the number of query-key pairs of a sequence under causal attention."""
    return tokens * (tokens + 1) / 2
