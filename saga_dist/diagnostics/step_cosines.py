"""Cosine similarity of the gradients of several recorded steps, all taken at one checkpoint: signal against noise.

With unit gradients u_1 ... u_n, the mean cosine of two steps is (|u_1 + ... + u_n|^2 - n) / (n (n - 1)). If a step's
gradient is a common direction plus independent noise, this is the share of its squared norm in the common direction.
Where the true answer to each pair is known, it is replayed on the same pairs in place of the completions; its gradients
are measured in the same way, and compared with those of the losses at the tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from saga_dist.config import RunConfig
from saga_dist.diagnostics.gradients import encode_recorded, parameter_gradients, replay_recorded
from saga_dist.diagnostics.loss_gradients import has_teacher, learner_alone
from saga_dist.diagnostics.oracle import Oracle
from saga_dist.diagnostics.recorded_steps import RecordedStep
from saga_dist.diagnostics.schema import StepCosines
from saga_dist.runtime.build import build_replay_worker

STEPS = 8
"""Largest number of recorded steps that are compared."""
TEXT = "text"
"""Name of the loss of the true answer."""
PART_OF = {TEXT: "tower", "dml": "tower", "grpo": "tower", "kl": "pooler"}
"""Loss to the part of the encoder whose gradient is compared; the attention alignment has one at the pooler only."""


class UnitGradients:
    """Accumulates the unit gradients of one loss over steps; keeps only their sum."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: torch.Tensor | float = 0.0
        self._along = 0.0

    def add(self, unit: torch.Tensor, other: torch.Tensor | None) -> None:
        """Adds the unit gradient of one step.

        Args:
            unit: flat gradient of norm 1.
            other: unit gradient of the true answer on the same step and part; None when there is none.
        """
        self._sum = self._sum + unit
        self.count += 1
        self._along += 0.0 if other is None else float(unit @ other)

    @property
    def between_steps(self) -> float | None:
        """Mean cosine of two steps; None with fewer than two."""
        if self.count < 2:
            return None
        squared = float(torch.as_tensor(self._sum).double().square().sum())
        return (squared - self.count) / (self.count * (self.count - 1))

    @property
    def along_text(self) -> float:
        """Mean cosine with the gradient of the true answer on the same step."""
        return self._along / self.count


def step_cosines(
    config: RunConfig, checkpoint: Path, steps: Sequence[RecordedStep], oracle: Oracle | None
) -> tuple[StepCosines, ...]:
    """Returns, for each loss, the mean cosine of two steps' gradients, and of a step's with that of the true answer.

    Args:
        config: configuration of the run.
        checkpoint: folder of the checkpoint.
        steps: at least two recorded steps, each with at least one group that carries a gradient.
        oracle: builds the true answer to each pair; None when it is not known.
    """
    with_attention = has_teacher(config)
    losses = [loss for loss in PART_OF if (loss != TEXT or oracle) and (loss != "kl" or with_attention)]
    # The gradient of the true answer enters the encoder like the policy gradient, so it uses the same loss weights.
    learners = {loss: learner_alone(config, checkpoint, "grpo" if loss == TEXT else loss) for loss in losses}
    worker = build_replay_worker(config)
    found = {loss: UnitGradients() for loss in losses}
    for step in steps:
        tokens = encode_recorded(learners["dml"], step.batches)
        replayed = replay_recorded(worker, step.groups, tokens, step.truncations, want_attention=with_attention)
        text_gradients = []
        if oracle is not None:
            pairs = [group.pair for group in step.groups]
            text_gradients = oracle.gradients(pairs, [tokens[pair.pair_id] for pair in pairs], want_attention=False)
        text_unit: torch.Tensor | None = None
        for loss, learner in learners.items():
            if loss != "dml":  # the learner of the metric loss has encoded the step already
                encode_recorded(learner, step.batches)
            gradient = parameter_gradients(learner, text_gradients if loss == TEXT else replayed)[PART_OF[loss]]
            unit = (gradient / gradient.norm()).float()
            if loss == TEXT:
                text_unit = unit
            if unit.isfinite().all():  # a zero gradient has no direction: its unit vector is NaN
                found[loss].add(unit, text_unit if PART_OF[loss] == PART_OF[TEXT] else None)
    return tuple(_record(loss, found[loss], oracle) for loss in losses)


def _record(loss: str, found: UnitGradients, oracle: Oracle | None) -> StepCosines:
    compared = oracle is not None and loss != TEXT and PART_OF[loss] == PART_OF[TEXT]
    return StepCosines(
        loss=loss,
        part=PART_OF[loss],
        num_steps=found.count,
        between_steps=found.between_steps,
        along_text=found.along_text if compared and found.count else None,
    )
