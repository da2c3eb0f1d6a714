"""One recorded step, pulled at by each loss alone: what ``gradients.py`` measures, on a run."""

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
    """Returns norms and cosines of the losses' gradients at a checkpoint, and how peaked teacher and pooler are.

    Args:
        config: of the run.
        checkpoint: folder of the weights.
        recorded: with at least one group that carries a gradient.
    """
    taught = has_teacher(config)
    measured = [loss for loss in LOSSES if loss != "kl" or taught]
    weights = {
        "dml": config.objective.lambda_dml, "grpo": config.objective.lambda_lm, "kl": config.objective.lambda_kl,
    }  # fmt: skip
    worker = build_replay_worker(config)
    replayed: list[TokenGradients] | None = None
    spread: AttentionEntropy | None = None
    by_loss: dict[str, dict[str, torch.Tensor]] = {}
    for loss in measured:
        learner = learner_alone(config, checkpoint, loss)
        tokens = encode_recorded(learner, recorded.batches)
        if replayed is None:  # the weights are the same for all, so one replay serves them
            replayed = replay_recorded(worker, recorded.groups, tokens, recorded.truncations, want_attention=taught)
        if loss == "kl" and (found := attention_entropies(learner.encoder, replayed, tokens)) is not None:
            spread = AttentionEntropy(
                teacher=found.teacher_entropy_nats,
                pooler=found.pooler_entropy_nats,
                uniform=found.uniform_entropy_nats,
                divergence=found.divergence_nats,
                num_completions=found.num_completions,
            )
        by_loss[loss] = parameter_gradients(learner, replayed)
    gradients = Gradients(
        step=recorded.step,
        num_groups=len(recorded.groups),
        num_same=sum(group.pair.same for group in recorded.groups),
        norms=tuple(LossNorms(loss=loss, weight=weights[loss], **norms(by_loss[loss])) for loss in measured),
        cosines=tuple(LossCosine(losses=losses, **values) for losses, values in cosines(by_loss).items()),
    )
    return gradients, spread


def has_teacher(config: RunConfig) -> bool:
    """Returns True when there are weights over tokens to teach, and descriptions whose attention can teach them."""
    return config.model.pooler == "attention" and build_prompt(config).describes_images


def learner_alone(config: RunConfig, checkpoint: Path, loss: str) -> Learner:
    """Returns a learner at the checkpoint's weights for which this loss alone counts, at weight 1."""
    alone = {f"lambda_{name}": float(name == loss) for name in ("dml", "kl")} | {"lambda_lm": float(loss == "grpo")}
    learner = build_learner(config.model_copy(update={"objective": config.objective.model_copy(update=alone)}))
    learner.load(checkpoint)
    return learner
