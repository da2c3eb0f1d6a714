"""Gradients of each loss alone on one recorded step of a run, measured with the functions of ``gradients.py``."""

from __future__ import annotations

from pathlib import Path

import torch

from saga_dist.config import RunConfig
from saga_dist.diagnostics.gradients import (
    LOSSES,
    attention_entropies,
    cosines,
    encode_recorded,
    norms,
    parameter_gradients,
    replay_recorded,
)
from saga_dist.diagnostics.recorded_steps import RecordedStep
from saga_dist.diagnostics.schema import AttentionEntropy, Gradients, LossCosine, LossNorms
from saga_dist.runtime.build import build_learner, build_prompt, build_replay_worker
from saga_dist.types import TokenGradients
from saga_dist.workers.learner import Learner


def measure_loss_gradients(
    config: RunConfig, checkpoint: Path, recorded: RecordedStep
) -> tuple[Gradients, AttentionEntropy | None]:
    """Returns norms and cosines of the losses' gradients at a checkpoint, and the entropies of teacher and pooler.

    The entropies are None when the run has no attention targets.

    Args:
        config: configuration of the run.
        checkpoint: folder of the checkpoint.
        recorded: a step with at least one group that carries a gradient.
    """
    with_attention = has_teacher(config)
    measured = [loss for loss in LOSSES if loss != "kl" or with_attention]
    weights = {
        "dml": config.objective.lambda_dml, "grpo": config.objective.lambda_lm, "kl": config.objective.lambda_kl,
    }  # fmt: skip
    worker = build_replay_worker(config)
    replayed: list[TokenGradients] | None = None
    entropy: AttentionEntropy | None = None
    by_loss: dict[str, dict[str, torch.Tensor]] = {}
    for loss in measured:
        learner = learner_alone(config, checkpoint, loss)
        tokens = encode_recorded(learner, recorded.batches)
        if replayed is None:  # all learners have the same weights, so one replay is enough
            replayed = replay_recorded(
                worker, recorded.groups, tokens, recorded.truncations, want_attention=with_attention
            )
        if loss == "kl" and (found := attention_entropies(learner.encoder, replayed, tokens)) is not None:
            entropy = AttentionEntropy(
                teacher=found.teacher_entropy_nats,
                pooler=found.pooler_entropy_nats,
                uniform=found.uniform_entropy_nats,
                divergence=found.divergence_nats,
                num_completions=found.num_completions,
            )
        by_loss[loss] = parameter_gradients(learner, replayed)
    gradients = Gradients(
        step=recorded.step + 1,
        num_groups=len(recorded.groups),
        num_same=sum(group.pair.same for group in recorded.groups),
        norms=tuple(LossNorms(loss=loss, weight=weights[loss], **norms(by_loss[loss])) for loss in measured),
        cosines=tuple(LossCosine(losses=losses, **values) for losses, values in cosines(by_loss).items()),
    )
    return gradients, entropy


def has_teacher(config: RunConfig) -> bool:
    """Returns True when the attention alignment is defined: attention pooler, prompt that describes the images."""
    return config.model.pooler == "attention" and build_prompt(config).describes_images


def learner_alone(config: RunConfig, checkpoint: Path, loss: str) -> Learner:
    """Returns a learner at the checkpoint's weights with weight 1 for one loss and 0 for the others.

    Args:
        config: configuration of the run.
        checkpoint: folder of the checkpoint.
        loss: one of ``LOSSES``.
    """
    weights = {f"lambda_{name}": float(name == loss) for name in ("dml", "kl")} | {"lambda_lm": float(loss == "grpo")}
    alone = {**weights, "balance": "none"}
    learner = build_learner(config.model_copy(update={"objective": config.objective.model_copy(update=alone)}))
    learner.load(checkpoint)
    return learner
