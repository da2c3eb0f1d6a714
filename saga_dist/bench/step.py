"""One optimizer step of the demo compared with a direct implementation of the paper's serial algorithm.

The direct implementation does not split the backward pass at the tokens: it calls Hugging Face ``generate`` from pixels
for every pair, then runs a forward and backward of the whole model from pixels for every completion of a contributing
group, and the gradients add up in the tower. Both sides train on the same groups (those our engine sampled), so the
tower's gradients must agree. L_KL is off on both sides: the direct implementation would need attention without a fused
kernel for it, and would be slower still.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from saga_dist.bench.common import BenchRow, Report, Size, Timing, less_is_better, one_thread
from saga_dist.bench.inputs import BenchInputs, load_inputs
from saga_dist.config import RunConfig, load_config
from saga_dist.data.sampling import training_sampler
from saga_dist.protocols import EncodedBatch
from saga_dist.runtime.build import build_splits
from saga_dist.runtime.serial import SerialRuntime
from saga_dist.standin import DEMO_CONFIG
from saga_dist.training.coordinator import Coordinator
from saga_dist.types import MicroBatch, ScoredGroup
from saga_dist.wire import read_recording, recording_path

if TYPE_CHECKING:
    from saga_dist.workers.learner import Learner

SPEED_BAR = 4.0
"""Target for the ratio of the times."""
TOLERANCE = 1e-4
"""Largest relative error between the tower's gradients of both sides."""
_SHARED_SETTINGS = (
    "runtime.kind=serial",
    "objective.lambda_kl=0",
    "evaluation.verdict_pairs=0",
    "data.flip=false",
    "data.shift=0",
    "data.color_jitter=0",
    "optimizer.clip_norm=1e9",  # no clipping, so that the gradients of both sides can be compared
)


def run(size: Size) -> Report:
    """Returns processor seconds per optimizer step, with the demo's engine and with the transformers engine."""
    less = ("data.batch_size=8", "rollout.pairs_per_batch=4", "rollout.group_size=3") if size is Size.TINY else ()
    without_vllm = {"one step, transformers engine": ("rollout.engine=transformers",)}
    cases = without_vllm if size is Size.TINY else {"one step": (), **without_vllm}
    configs = {case: load_config(DEMO_CONFIG, [*_SHARED_SETTINGS, *less, *engine]) for case, engine in cases.items()}
    repeats = {Size.TINY: 1, Size.QUICK: 1, Size.FULL: 3}[size]
    settings = next(iter(configs.values())).rollout
    return Report(
        bench="step",
        alternative="the serial algorithm, plainly written",
        rows=tuple(_row(case, config, repeats) for case, config in configs.items()),
        notes=(
            f"{settings.pairs_per_batch} pairs x {settings.group_size} completions, everything in one process; "
            "processor seconds",
            "equal: the same gradient in the tower from the same groups",
        ),
    )


def _row(case: str, config: RunConfig, repeats: int) -> BenchRow:
    ours: Timing[_StepRecord] = Timing()
    plain: Timing[_StepRecord] = Timing()
    errors = []
    with tempfile.TemporaryDirectory() as folder, one_thread(), _Ours(config, Path(folder)) as side:
        side.step()  # warm-up; that of the other side is its first call of generate
        for _ in range(repeats):
            other = _Plain(config, side.learner)
            ours.run(side.step)
            done = ours.results[-1]
            other.generate(done.batch, num_pairs=1)
            plain.run(partial(other.step, done))
            errors.append(_relative_error(done.gradients, plain.results[-1].gradients))
    groups = ours.results[-1].groups
    detail = {
        "relative_error": max(errors),
        "ours_wall_s": ours.wall,
        "other_wall_s": plain.wall,
        "groups": len(groups),
        "contributing": sum(group.contributes for group in groups),
    }
    return less_is_better(case, ours.cpu, plain.cpu, "s", equal=max(errors) <= TOLERANCE, bar=SPEED_BAR, detail=detail)


@dataclass(slots=True)
class _StepRecord:
    """Inputs and gradients of one optimizer step."""

    batch: MicroBatch
    """Images and pairs of the step."""
    groups: list[ScoredGroup]
    """Scored groups of the step."""
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    """Gradients of the tower's parameters by name, at the call of the optimizer."""


class _Ours:
    """The demo's step in the serial runtime.

    Args:
        config: configuration of the run.
        folder: run directory.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._runtime = SerialRuntime(config)
        self.learner: Learner = self._runtime.learner  # type: ignore[assignment]
        self._folder = folder
        sampler = training_sampler(config, self.learner.labels("train"))
        self._coordinator = Coordinator(config, self._runtime, sampler, folder)
        self._batches: list[MicroBatch] = []
        encode = self.learner.encode

        def recorded_encode(batch: MicroBatch) -> EncodedBatch:
            self._batches.append(batch)
            return encode(batch)

        self.learner.encode = recorded_encode  # type: ignore[method-assign]
        self._gradients: dict[str, torch.Tensor] = {}
        self.learner.optimizer.register_step_pre_hook(self._keep_gradients)

    def step(self) -> _StepRecord:
        """Runs one optimizer step and returns its record."""
        number = self.learner.step
        self._coordinator.train_step()
        groups = read_recording(recording_path(self._folder / "rollouts", number + 1))
        return _StepRecord(self._batches[-1], list(groups), self._gradients)

    def _keep_gradients(self, *_: Any) -> None:
        named = self.learner.encoder.tower.model.named_parameters()  # type: ignore[union-attr]
        self._gradients = {name: tensor.grad.clone() for name, tensor in named if tensor.grad is not None}

    def __enter__(self) -> _Ours:
        return self

    def __exit__(self, *_: object) -> None:
        self._runtime.close()


class _Plain:
    """The direct implementation of the same step, on a copy of the learner's present weights.

    Args:
        config: configuration of the run.
        learner: learner whose weights are copied.
    """

    def __init__(self, config: RunConfig, learner: Learner) -> None:
        self._config = config
        self._inputs: BenchInputs = load_inputs(None, 2)
        self._model = self._inputs.reference()
        self._model.requires_grad_(False)
        self._model.model.visual.load_state_dict(learner.encoder.tower.model.state_dict())  # type: ignore[union-attr]
        self._model.model.visual.requires_grad_(True)
        self._pooler, self._metric_loss = copy.deepcopy(learner.encoder.pooler), copy.deepcopy(learner.metric_loss)
        self._images = build_splits(config.data, seed=config.run.seed).train
        self._optimizer = torch.optim.AdamW(
            [*self._model.model.visual.parameters(), *self._pooler.parameters(), *self._metric_loss.parameters()],
            lr=config.optimizer.lr_encoder,
        )

    def step(self, done: _StepRecord) -> _StepRecord:
        """Runs one optimizer step on the groups of ``done`` and returns its record."""
        self._optimizer.zero_grad(set_to_none=True)
        self._metric_step(done.batch)
        self.generate(done.batch, num_pairs=len(done.batch.pairs))
        chosen = [group for group in done.groups if group.contributes][: self._config.rollout.contributing_groups]
        num_tokens = sum(group.num_tokens for group in chosen)
        for group in chosen:
            self._replay(group, num_tokens)
        named = self._model.model.visual.named_parameters()
        gradients = {name: tensor.grad.clone() for name, tensor in named if tensor.grad is not None}
        self._optimizer.step()
        return _StepRecord(done.batch, done.groups, gradients)

    def generate(self, batch: MicroBatch, *, num_pairs: int) -> None:
        """Samples a group for each of the first ``num_pairs`` pairs, one pair after the other; discards the groups."""
        settings = self._config.rollout
        for pair in batch.pairs[:num_pairs]:
            inputs = self._inputs_for((pair.image_a, pair.image_b))
            inputs.generate(self._model, [0], max_tokens=settings.max_tokens, num_completions=settings.group_size)

    def _metric_step(self, batch: MicroBatch) -> None:
        pixels = self._inputs.tower.preprocess([self._images.image(index) for index in batch.image_ids])
        output = self._model.model.visual(pixels.pixel_values, grid_thw=torch.tensor(pixels.grids))
        embeddings_IE = self._pooler(output.pooler_output.split(list(pixels.lengths))).embeddings_IE
        loss = self._metric_loss(embeddings_IE, torch.tensor(batch.labels))
        (self._config.objective.lambda_dml * loss).backward()

    def _replay(self, group: ScoredGroup, num_tokens_total: int) -> None:
        inputs = self._inputs_for((group.pair.image_a, group.pair.image_b))
        num_prompt = len(inputs.prompt_ids())
        for advantage, ids in zip(group.advantages_G.tolist(), group.completions.token_ids, strict=True):
            model_inputs = inputs.model_inputs([0], [ids])
            logits_TV = self._model(**model_inputs).logits[0, num_prompt - 1 : -1]
            log_prob = -F.cross_entropy(logits_TV.float(), torch.tensor(ids), reduction="sum")
            (-self._config.objective.lambda_lm * advantage * log_prob / num_tokens_total).backward()

    def _inputs_for(self, images: Sequence[int]) -> BenchInputs:
        pixels = self._inputs.tower.preprocess([self._images.image(index) for index in images])
        return replace(self._inputs, pixels=(pixels,))


def _relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Returns the relative error of the tower's gradient, by the Euclidean norm over all parameters."""
    assert found.keys() == expected.keys()
    difference = sum((found[name] - expected[name]).square().sum().item() for name in found)
    return (difference / sum(tensor.square().sum().item() for tensor in expected.values())) ** 0.5
