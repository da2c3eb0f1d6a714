"""A learner with random weights and random images, and its steps in parts that can be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from saga_dist.data.image_sets import ArrayImageSet, Splits
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.diagnostics.gpu_check.measuring import Measured, measured
from saga_dist.diagnostics.gpu_check.random_model import RandomModel, fill_randomly
from saga_dist.diagnostics.gpu_check.sizes import CheckSize
from saga_dist.models.families.checkpoint_family import ModelTower
from saga_dist.models.pooler import Pooler
from saga_dist.protocols import EncodedBatch
from saga_dist.runtime.build import assemble_learner
from saga_dist.types import EncoderTokens, LogProbMismatch, MicroBatch, StepResult, TokenGradients
from saga_dist.workers.learner import Learner


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One optimizer step in its parts."""

    encoded: tuple[Measured[EncodedBatch], ...]
    """Encoding of each micro-batch, with the metric loss's backward pass to the tokens."""
    backward: Measured[float]
    """Token gradients, attention alignment and the backward pass through the tower, for all micro-batches."""
    update: Measured[StepResult]
    """Clipping and AdamW."""

    @property
    def peak_bytes(self) -> int:
        """Highest number of allocated bytes in the step."""
        return max(self.backward.peak_bytes, self.update.peak_bytes, *(part.peak_bytes for part in self.encoded))


def empty_pooler(model: RandomModel, *, seed: int | None) -> Pooler:
    """Returns the pooler of a run on the CPU; without a seed its weights are uninitialised."""
    settings = model.config.model
    return Pooler(
        settings.pooler,
        key=settings.pooler_key,
        width=model.family.layout.width,
        embedding_dim=settings.embedding_dim,
        layer_norm=settings.pooler_layer_norm,
        seed=seed,
    )


def random_learner(model: RandomModel, tower: ModelTower) -> Learner:
    """Returns a learner on a tower, with as many random images as a micro-batch has.

    The pooler's weights are random and not orthogonal, because orthogonal maps of width 4,096 take half a minute.

    Args:
        model: model of the check.
        tower: vision tower with float32 weights on the model's device.
    """
    size = model.size
    if model.config.optimizer.gradient_checkpointing:
        tower.enable_gradient_checkpointing()
    num_classes = size.batch_size // size.images_per_class
    images = ArrayImageSet(
        images=np.stack(random_images(size)),
        labels_I=np.arange(size.batch_size) % num_classes,
        class_names=tuple(f"class {index}" for index in range(num_classes)),
    )
    pooler = fill_randomly(empty_pooler(model, seed=None).to(model.device), seed=3)
    return assemble_learner(model.config, tower, pooler, Splits(train=images, val=None, test=images))


def random_images(size: CheckSize) -> list[np.ndarray]:
    """Returns the images of a micro-batch, uint8 [H, W, 3] each."""
    rng, shape = np.random.default_rng(0), (size.image_size, size.image_size, 3)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(size.batch_size)]


def micro_batch(model: RandomModel, learner: Learner, index: int = 0) -> MicroBatch:
    """Returns a micro-batch of the learner's present step."""
    size = model.size
    sampler = ClassBalancedSampler(learner.labels("train"), size.batch_size, size.images_per_class, seed=0)
    return sampler.micro_batch(learner.step, index, size.pairs)


def take_step(model: RandomModel, learner: Learner, num_micro_batches: int) -> MeasuredStep:
    """Takes one optimizer step with random token gradients and returns the time and memory of its parts.

    Args:
        model: model of the check.
        learner: the learner.
        num_micro_batches: micro-batches that are open at the same time.
    """
    batches = [micro_batch(model, learner, index) for index in range(num_micro_batches)]
    encoded = tuple(measured(model.device, partial(learner.encode, batch)) for batch in batches)
    gradients = random_gradients([record for part in encoded for record in part.result.handles])
    backward = measured(model.device, lambda: learner.accumulate(gradients))
    # The gradients are complete now, so what is left of the step is clipping and the optimizer.
    update = measured(model.device, lambda: learner.finish_step([]))
    return MeasuredStep(encoded, backward, update)


def random_gradients(records: Sequence[EncoderTokens]) -> list[TokenGradients]:
    """Returns small random token gradients and uniform attention targets of pairs, on the CPU, as replay sends them."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for record in records:
        targets = [torch.full((length,), 1 / length) for length in record.lengths]
        values_NW = 1e-3 * torch.randn(tuple(record.values_NW.shape), generator=generator)
        found.append(
            TokenGradients(
                pair_id=record.pair_id,
                values_NW=values_NW,
                attention_a_N=targets[0],
                attention_b_N=targets[1],
                negative_entropy=sum(float(torch.xlogy(target, target).sum()) for target in targets),
                num_attended=1,
                loss=0.0,
                num_tokens=1,
                mismatch=LogProbMismatch(0.0, 0.0),
                encoder_version=record.encoder_version,
            )
        )
    return found
