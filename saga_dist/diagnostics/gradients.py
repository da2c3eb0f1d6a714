"""How hard each loss pulls at the encoder, and whether they pull the same way: norms and cosines of three gradients.

Each loss goes alone, at weight 1, through the learner's own code: a learner at the run's weights whose other weights
are 0. One recorded step gives images, pairs and completions. L_KL has no gradient at the tower, L_GRPO none at the
pooler; that is the method, and shows here as norms of 0 and as a cosine that does not exist.
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
PARTS = ("tower", "pooler")
ENCODER = "encoder"
"""Both parts together."""


class LossLearner(Protocol):
    """What is asked of a learner (``workers.learner.Learner``)."""

    encoder: Any

    @property
    def step(self) -> int: ...

    def encode(self, batch: MicroBatch) -> Any: ...

    def accumulate(self, handles: Sequence[TokenGradients]) -> float: ...


def encode_recorded(learner: LossLearner, batches: Sequence[MicroBatch]) -> dict[str, EncoderTokens]:
    """Returns pair id to tokens after encoding the micro-batches of a recorded step as if they were the next step's."""
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
    """Returns dL_GRPO/d(tokens) and the attention targets of each group at today's tokens.

    Args:
        worker: of the run's frozen MLLM.
        groups: that carry a gradient.
        tokens: pair id to tokens.
        truncations: for each group, the largest importance weight, None where it is on-policy.
        want_attention: the attention targets, too.
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
    """Returns the gradient of the open step's losses at each part of the encoder, flat float64.

    Args:
        learner: has encoded the step's micro-batches.
        gradients: of the step's groups; a loss whose weight is 0 makes nothing of them.
    """
    learner.accumulate(gradients)
    modules = {"tower": learner.encoder.tower, "pooler": learner.encoder.pooler}
    return {part: _flat(module) for part, module in modules.items()}


def norms(gradients: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Returns the l2 norm of a loss's gradient at each part, and at the whole encoder."""
    squares = {part: float(gradients[part].square().sum()) for part in PARTS}
    return {**{part: math.sqrt(square) for part, square in squares.items()}, ENCODER: math.sqrt(sum(squares.values()))}


def cosines(by_loss: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[tuple[str, str], dict[str, float | None]]:
    """Returns, for each two losses, the cosine of their gradients at each part and at the whole encoder.

    None where one of the two has no gradient.

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
    """The attention targets of a step's groups beside the pooler's weights on the same images."""

    teacher_entropy_nats: float
    """Mean over the correct completions, and over images a and b."""
    pooler_entropy_nats: float
    """Mean over the same images, each counted as often as it has a target."""
    divergence_nats: float
    """Mean over groups of KL(mean target || pooler) of one image."""
    uniform_entropy_nats: float
    """ln N, mean over the same images."""
    num_completions: int


@torch.no_grad()
def attention_entropies(
    encoder: Any, gradients: Sequence[TokenGradients], tokens: Mapping[str, EncoderTokens]
) -> AttentionEntropies | None:
    """Returns how peaked teacher and pooler are on the same images; None where no group has an attention target.

    Args:
        encoder: has the attention pooler.
        gradients: of ``replay_recorded`` with attention.
        tokens: pair id to tokens.
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
    """All gradients of a module side by side, zeros where nothing arrived."""
    return torch.cat(
        [
            (torch.zeros_like(value) if value.grad is None else value.grad).detach().double().flatten().cpu()
            for value in module.parameters()
        ]
        or [torch.zeros(0, dtype=torch.float64)]
    )
