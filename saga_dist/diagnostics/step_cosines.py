"""How much of a step's gradient is signal? Gradients of several recorded steps, all taken at one checkpoint's weights.

With unit gradients u_1 ... u_n, the mean cosine of two steps is (|u_1 + ... + u_n|^2 - n) / (n (n - 1)). If a step's
gradient is a common direction plus noise of its own, this is the share of its squared length that is the common
direction. Where the true text of each pair is known, the same is told of it, replayed on the same pairs in place of the
completions, and how far each loss points its way.
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
"""Recorded steps that are compared."""
TEXT = "text"
PART_OF = {TEXT: "tower", "dml": "tower", "grpo": "tower", "kl": "pooler"}
"""Where each is looked at: the attention alignment reaches the pooler alone."""


class UnitGradients:
    """Unit gradients of one loss, step by step; only their sum is kept."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: torch.Tensor | float = 0.0
        self._along = 0.0

    def add(self, unit: torch.Tensor, other: torch.Tensor | None) -> None:
        """Takes a step's unit gradient, flat, and that of the true text, where there is one."""
        self._sum = self._sum + unit
        self.count += 1
        self._along += 0.0 if other is None else float(unit @ other)

    @property
    def between_steps(self) -> float | None:
        """Mean cosine of two steps; None with one."""
        if self.count < 2:
            return None
        squared = float(torch.as_tensor(self._sum).double().square().sum())
        return (squared - self.count) / (self.count * (self.count - 1))

    @property
    def along_text(self) -> float:
        """Mean cosine with the true text of the same step."""
        return self._along / self.count


def step_cosines(
    config: RunConfig, checkpoint: Path, steps: Sequence[RecordedStep], oracle: Oracle | None
) -> tuple[StepCosines, ...]:
    """Returns, for each loss, the mean cosine of two steps' gradients, and of a step's with that of the true text.

    Args:
        config: of the run.
        checkpoint: folder of the weights.
        steps: recorded ones, each with at least one group that carries a gradient; at least two.
        oracle: knows the true text of each pair; None where nobody does.
    """
    taught = has_teacher(config)
    losses = [loss for loss in PART_OF if (loss != TEXT or oracle) and (loss != "kl" or taught)]
    # The true text goes where the policy gradient goes; only what is replayed is another.
    learners = {loss: learner_alone(config, checkpoint, "grpo" if loss == TEXT else loss) for loss in losses}
    worker = build_replay_worker(config)
    found = {loss: UnitGradients() for loss in losses}
    for step in steps:
        tokens = encode_recorded(learners["dml"], step.batches)
        replayed = replay_recorded(worker, step.groups, tokens, step.truncations, want_attention=taught)
        told = []
        if oracle is not None:
            pairs = [group.pair for group in step.groups]
            told = oracle.gradients(pairs, [tokens[pair.pair_id] for pair in pairs], want_attention=False)
        truth: torch.Tensor | None = None
        for loss, learner in learners.items():
            if loss != "dml":  # that one has encoded
                encode_recorded(learner, step.batches)
            gradient = parameter_gradients(learner, told if loss == TEXT else replayed)[PART_OF[loss]]
            unit = (gradient / gradient.norm()).float()
            if loss == TEXT:
                truth = unit
            if unit.isfinite().all():  # a loss without a gradient at this step points nowhere
                found[loss].add(unit, truth if PART_OF[loss] == PART_OF[TEXT] else None)
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
