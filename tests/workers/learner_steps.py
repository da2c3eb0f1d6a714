"""Learners of a tiny checkpoint, micro-batches and token gradients for them, and their step by end-to-end autograd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from saga_dist.config import RunConfig, parse_config
from saga_dist.data.image_sets import ArrayImageSet, Splits
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.models.encoder import Encoder
from saga_dist.models.pooler import Pooler
from saga_dist.models.trained_part import choose_trained
from saga_dist.objectives.attention import attention_kl
from saga_dist.objectives.metric_losses import build_metric_loss
from saga_dist.runtime.build import build_family
from saga_dist.types import LogProbMismatch, MicroBatch, TokenGradients
from saga_dist.utils.rng import counter_generator
from saga_dist.workers.learner import Learner

NUM_CLASSES = 4


def make_config(checkpoint: Path, clip_norm: float = 1e9, **objective: object) -> RunConfig:
    return parse_config(
        {
            "data": {"layout": "birds", "image_size": 80, "batch_size": 8, "images_per_class": 2},
            "model": {"path": str(checkpoint), "dtype": "float32", "embedding_dim": 16, "device": "cpu"},
            "objective": {"metric_loss": "proxy_anchor", "kl_layer": 1, **objective},
            "optimizer": {"clip_norm": clip_norm, "lr_encoder": 1e-3, "lr_pooler": 1e-2, "proxy_lr_multiplier": 10.0},
            "rollout": {"pairs_per_batch": 4},
        },
        where="test",
    )


def make_splits() -> Splits:
    def images(seed: int) -> ArrayImageSet:
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 80, 80, 3), dtype=np.uint8)
        return ArrayImageSet(pixels, np.arange(16) // 4, [f"class {label}" for label in range(NUM_CLASSES)])

    return Splits(images(0), images(1), images(2))


def make_learner(config: RunConfig, *, num_steps: int = 10, autocast_dtype: torch.dtype | None = None) -> Learner:
    tower = build_family(config).load_tower(dtype=torch.float32, device="cpu")
    choose_trained(tower, config.model, seed=4)
    pooler = Pooler("attention", width=tower.layout.width, embedding_dim=16, seed=1)
    return Learner(
        encoder=Encoder(tower, pooler, image_size=80),
        metric_loss=build_metric_loss("proxy_anchor", num_classes=NUM_CLASSES, embedding_dim=16, seed=2),
        splits=make_splits(),
        data=config.data,
        objective=config.objective,
        optimizer=config.optimizer,
        num_steps=num_steps,
        autocast_dtype=autocast_dtype,
    )


def micro_batch(learner: Learner, index: int = 0) -> MicroBatch:
    sampler = ClassBalancedSampler(learner.labels("train"), 8, 2, seed=3)
    return sampler.micro_batch(learner.step, index, 4)


def gradients_for(learner: Learner, batch: MicroBatch) -> list[TokenGradients]:
    """Made-up token gradients and attention targets with the shapes of the real ones."""
    answers = []
    for tokens in learner.encode(batch).handles:
        generator = counter_generator("made-up", tokens.pair_id)
        targets = [torch.tensor(generator.dirichlet(np.ones(length)), dtype=torch.float32) for length in tokens.lengths]
        answers.append(
            TokenGradients(
                pair_id=tokens.pair_id,
                values_NW=torch.tensor(generator.normal(size=tuple(tokens.values_NW.shape)), dtype=torch.float32),
                attention_a_N=targets[0],
                attention_b_N=targets[1],
                negative_entropy=sum(float(torch.xlogy(target, target).sum()) for target in targets),
                num_attended=1 + len(answers),
                loss=0.25,
                num_tokens=10,
                mismatch=LogProbMismatch(0.0, 0.0),
                encoder_version=learner.step,
            )
        )
    return answers


def finish_and_catch(learner: Learner, gradients: list[TokenGradients]) -> dict[str, torch.Tensor]:
    """The parameter gradients as the optimizer sees them."""
    caught: dict[str, torch.Tensor] = {}

    def catch(*_: object) -> None:
        for part in (learner.encoder, learner.metric_loss):
            caught.update({name: p.grad.clone() for name, p in part.named_parameters() if p.grad is not None})

    handle = learner.optimizer.register_step_pre_hook(catch)
    learner.finish_step(gradients)
    handle.remove()
    return caught


def end_to_end(learner: Learner, batches: list[MicroBatch], gradients: list[TokenGradients]) -> dict[str, torch.Tensor]:
    """The same gradients from one graph: L_DML + <X, dL/dX> + L_KL, differentiated by autograd in one go."""
    encoder, objective = learner.encoder, learner._objective
    found = {gradient.pair_id: gradient for gradient in gradients}
    num_attended = sum(gradient.num_attended for gradient in gradients)
    total = torch.zeros(())
    for batch in batches:
        images = [learner._images._splits.train.image(index) for index in batch.image_ids]
        pixels = encoder.tower.preprocess(images)
        per_image = dict(zip(batch.image_ids, encoder.tower(pixels).split(list(pixels.lengths)), strict=True))
        width = encoder.tower.layout.width
        embeddings = encoder.pooler([values[:, :width] for values in per_image.values()]).embeddings_IE
        total = total + objective.lambda_dml * learner.metric_loss(embeddings, torch.tensor(batch.labels))
        for pair in batch.pairs:
            gradient = found[pair.pair_id]
            values = torch.cat([per_image[pair.image_a], per_image[pair.image_b]])
            total = total + objective.lambda_lm * (values * gradient.values_NW).sum()
            for image, target in ((pair.image_a, gradient.attention_a_N), (pair.image_b, gradient.attention_b_N)):
                beta = encoder.pooler.log_weights([per_image[image].detach()[:, :width]])[0].exp()
                weight = objective.lambda_kl * gradient.num_attended / num_attended
                total = total + weight * attention_kl(target, beta)
    named = [*encoder.named_parameters(), *learner.metric_loss.named_parameters()]
    names, parameters = zip(*[(name, weight) for name, weight in named if weight.requires_grad], strict=True)
    return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))


def assert_step_is_end_to_end(learner: Learner, num_batches: int) -> None:
    """Takes a step of several micro-batches and compares every gradient with that of end-to-end autograd."""
    batches = [micro_batch(learner, index) for index in range(num_batches)]
    gradients = [gradient for batch in batches for gradient in gradients_for(learner, batch)]
    expected = end_to_end(learner, batches, gradients)
    caught = finish_and_catch(learner, gradients)
    assert caught.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (caught[name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
        assert error < 1e-5, f"{name}: relative error {error:.2e}"
