"""Norms and cosine similarities of the encoder gradients of the three losses.

Each gradient is computed by the learner's own code: a learner at the run's weights, with weight 1 for one loss and 0
for the others. One recorded step provides images, pairs and completions. By the method, L_KL has no gradient at the
tower and L_GRPO none at the pooler; these norms are 0 and the cosines with them are undefined (None).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Protocol

import torch

from saga_dist.objectives.attention import attention_kl
from saga_dist.protocols import ReplayWorker
from saga_dist.types import EncoderTokens, MicroBatch, ReplayTask, ScoredGroup, TokenGradients

LOSSES = ("dml", "grpo", "kl")
"""Metric loss, policy-gradient loss and attention alignment."""
PARTS = ("tower", "pooler")
"""Trainable parts of the encoder."""
ENCODER = "encoder"
"""Key of the values for tower and pooler together."""


class LossLearner(Protocol):
    """The methods of ``workers.learner.Learner`` that the gradient measurements use."""

    encoder: Any
    """Module with the attributes ``tower`` and ``pooler``."""

    @property
    def step(self) -> int:
        """Optimizer steps done so far."""

    def encode(self, batch: MicroBatch) -> Any:
        """Encodes a micro-batch, accumulates the metric loss at the tokens, and returns the tokens of every pair."""

    def accumulate(self, handles: Sequence[TokenGradients]) -> float:
        """Accumulates the gradients of the open step in the encoder's parameters."""


def encode_recorded(learner: LossLearner, batches: Sequence[MicroBatch]) -> dict[str, EncoderTokens]:
    """Encodes the micro-batches of a recorded step as the learner's next step; returns the tokens by pair id."""
    tokens: dict[str, EncoderTokens] = {}
    for batch in batches:
        encoded = learner.encode(replace(batch, step=learner.step))
        tokens.update(zip((pair.pair_id for pair in batch.pairs), encoded.handles, strict=True))
    return tokens


def replay_recorded(
    worker: ReplayWorker,
    groups: Sequence[ScoredGroup],
    tokens: Mapping[str, EncoderTokens],
    truncations: Sequence[float | None],
    *,
    want_attention: bool,
) -> list[TokenGradients]:
    """Returns dL_GRPO/d(tokens) and the attention targets of each group, at the given tokens.

    Args:
        worker: replays with the run's frozen MLLM.
        groups: groups whose rewards vary, so that they carry a gradient.
        tokens: pair id to the tokens of the pair under the present encoder.
        truncations: largest importance weight of each group; None for a group that is on-policy.
        want_attention: True to compute the attention targets too.
    """
    num_tokens = sum(group.num_tokens for group in groups)
    return [
        worker.replay(
            ReplayTask(group, tokens[group.pair_id], num_tokens, want_attention, truncate_at=truncate_at),
            tokens[group.pair_id],
        )
        for group, truncate_at in zip(groups, truncations, strict=True)
    ]


def parameter_gradients(learner: LossLearner, gradients: Sequence[TokenGradients]) -> dict[str, torch.Tensor]:
    """Returns the gradient of the open step's losses with respect to each of ``PARTS``, as flat float64 vectors.

    Args:
        learner: a learner that has encoded the step's micro-batches.
        gradients: token gradients of the step's groups; losses with weight 0 ignore them.
    """
    learner.accumulate(gradients)
    modules = {"tower": learner.encoder.tower, "pooler": learner.encoder.pooler}
    return {part: _flat(module) for part, module in modules.items()}


def norms(gradients: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Returns the l2 norm of one loss's gradient at each of ``PARTS`` and at the whole encoder.

    Args:
        gradients: part to flat gradient.
    """
    squares = {part: float(gradients[part].square().sum()) for part in PARTS}
    return {**{part: math.sqrt(square) for part, square in squares.items()}, ENCODER: math.sqrt(sum(squares.values()))}


def cosines(by_loss: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[tuple[str, str], dict[str, float | None]]:
    """Returns, for each pair of losses, the cosine of their gradients at each part and at the whole encoder.

    A cosine is in [-1, 1], or None when one of the two gradients is zero.

    Args:
        by_loss: loss to part to flat gradient.
    """
    found: dict[tuple[str, str], dict[str, float | None]] = {}
    for one, two in combinations(by_loss, 2):
        products = {part: float(by_loss[one][part] @ by_loss[two][part]) for part in PARTS}
        products[ENCODER] = sum(products.values())
        first, second = norms(by_loss[one]), norms(by_loss[two])
        scales = {part: first[part] * second[part] for part in products}
        found[one, two] = {part: products[part] / scales[part] if scales[part] else None for part in products}
    return found


@dataclass(frozen=True, slots=True)
class AttentionEntropies:
    """Entropies of the attention targets of a step's groups, and of the pooler's weights on the same images."""

    teacher_entropy_nats: float
    """Entropy of the targets: mean over the correct completions, and over images a and b."""
    pooler_entropy_nats: float
    """Entropy of the pooler's weights: mean over the same images, each weighted by its number of targets."""
    divergence_nats: float
    """KL(mean target || pooler) of one image: mean over the same images with the same weights."""
    uniform_entropy_nats: float
    """ln N, the entropy of uniform weights: mean over the same images with the same weights."""
    num_completions: int
    """Number of correct completions with a description of both images."""


@torch.no_grad()
def attention_entropies(
    encoder: Any, gradients: Sequence[TokenGradients], tokens: Mapping[str, EncoderTokens]
) -> AttentionEntropies | None:
    """Returns the entropies of teacher and pooler on the same images; None when no group has an attention target.

    Args:
        encoder: an encoder with the attention pooler.
        gradients: results of ``replay_recorded`` with ``want_attention``.
        tokens: pair id to the tokens of the pair.
    """
    totals, num_completions, num_images = [0.0, 0.0, 0.0, 0.0], 0, 0
    for gradient in gradients:
        if not gradient.num_attended:
            continue
        pair, weight = tokens[gradient.pair_id], gradient.num_attended
        num_completions, num_images = num_completions + weight, num_images + 2 * weight
        totals[0] -= weight * gradient.negative_entropy
        halves = pair.values_NW[:, : pair.width].split(list(pair.lengths))
        for main_ND, target_N in zip(halves, (gradient.attention_a_N, gradient.attention_b_N), strict=True):
            assert target_N is not None
            log_beta_N = encoder.pooler.log_weights([main_ND])[0].double()
            totals[1] -= weight * float(torch.xlogy(log_beta_N.exp(), log_beta_N.exp()).sum())
            totals[2] += weight * float(attention_kl(target_N.double(), log_beta_N.exp()))
            totals[3] += weight * math.log(len(target_N))
    if not num_completions:
        return None
    teacher, pooler, divergence, uniform = (total / num_images for total in totals)
    return AttentionEntropies(teacher, pooler, divergence, uniform, num_completions)


def _flat(module: torch.nn.Module) -> torch.Tensor:
    """Returns the gradients of all parameters of a module, concatenated as float64; zeros for a missing gradient."""
    return torch.cat(
        [
            (torch.zeros_like(value) if value.grad is None else value.grad).detach().double().flatten().cpu()
            for value in module.parameters()
        ]
        or [torch.zeros(0, dtype=torch.float64)]
    )
