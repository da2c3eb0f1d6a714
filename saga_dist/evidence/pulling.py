"""One recorded step, pulled at by each loss alone: what ``gradients.py`` measures, on a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from saga_dist.assembly import build_learner, build_replay_worker
from saga_dist.config import RunConfig
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.evidence.gradients import (
    LOSSES,
    cosines,
    encode_recorded,
    norms,
    parameter_gradients,
    replay_recorded,
    teacher_spread,
)
from saga_dist.evidence.record import Gradients, LossCosine, LossNorms, Spread
from saga_dist.protocols import EncodedBatch
from saga_dist.recorded_rollouts import RecordedRollouts
from saga_dist.rollout_buffer import RolloutBuffer
from saga_dist.types import MicroBatch, ScoredGroup, TokenGradients
from saga_dist.workers.learner import Learner


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """What a recorded step trained on."""

    step: int
    batches: list[MicroBatch]
    groups: list[ScoredGroup]
    """That carry a gradient, as many as a step takes."""
    truncations: list[float | None]
    """For each group, its largest importance weight at today's weights; None where it is on-policy."""


def recorded_step(config: RunConfig, run_dir: Path, sampler: ClassBalancedSampler, *, near: int) -> RecordedStep | None:
    """Returns the recorded step nearest to optimizer step ``near``; None without a recording.

    Raises:
        DataError: the recording holds other images or classes than this data set.
    """
    files = (run_dir / "rollouts").glob("step_*.arrow")
    steps = sorted((int(path.stem.removeprefix("step_")) for path in files), key=lambda step: (abs(step - near), step))
    if not steps:
        return None
    rollouts, buffer, batches = RecordedRollouts(config, run_dir), RolloutBuffer(config.rollout.contributing_groups), []
    for index in range(config.rollout.max_micro_batches):
        batch = sampler.micro_batch(steps[0], index, config.rollout.pairs_per_batch)
        outcomes = rollouts.take(batch, EncodedBatch((), 0))
        groups = [outcome for outcome in outcomes if isinstance(outcome, ScoredGroup)]
        if not groups:
            break
        batches.append(batch)
        for group in groups:
            buffer.add(group)
    selected = buffer.selected()
    truncations = [rollouts.off_policy(group, near)[1] for group in selected]
    return RecordedStep(steps[0], batches, selected, truncations)


def pull(config: RunConfig, checkpoint: Path, recorded: RecordedStep) -> tuple[Gradients, Spread | None]:
    """Returns norms and cosines of the losses' gradients at a checkpoint, and how peaked teacher and pooler are.

    Args:
        config: of the run.
        checkpoint: folder of the weights.
        recorded: with at least one group that carries a gradient.
    """
    has_teacher = config.model.pooler == "attention" and config.prompt.variant == "structured"
    measured = [loss for loss in LOSSES if loss != "kl" or has_teacher]
    weights = {
        "dml": config.objective.lambda_dml, "grpo": config.objective.lambda_lm, "kl": config.objective.lambda_kl,
    }  # fmt: skip
    worker = build_replay_worker(config)
    replayed: list[TokenGradients] | None = None
    spread: Spread | None = None
    by_loss: dict[str, dict[str, torch.Tensor]] = {}
    for loss in measured:
        learner = _learner_of(config, checkpoint, loss)
        tokens = encode_recorded(learner, recorded.batches)
        if replayed is None:  # the weights are the same for all, so one replay serves them
            replayed = replay_recorded(
                worker, recorded.groups, tokens, recorded.truncations, want_attention=has_teacher
            )
        if loss == "kl" and (found := teacher_spread(learner.encoder, replayed, tokens)) is not None:
            spread = Spread(
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


def _learner_of(config: RunConfig, checkpoint: Path, loss: str) -> Learner:
    """A learner at the checkpoint's weights for which this loss alone counts, at weight 1."""
    alone = {f"lambda_{name}": float(name == loss) for name in ("dml", "kl")} | {"lambda_lm": float(loss == "grpo")}
    learner = build_learner(config.model_copy(update={"objective": config.objective.model_copy(update=alone)}))
    learner.load(checkpoint)
    return learner
