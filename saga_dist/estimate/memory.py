"""Bytes of every part of a run, and which of them are there at the same time."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from saga_dist.config import RunConfig
from saga_dist.estimate.activations import ReplayActivations, TowerActivations, replay_activations, tower_activations
from saga_dist.estimate.data import DataShape
from saga_dist.estimate.shapes import ModelShape, Weights
from saga_dist.estimate.token_counts import TokenCounts
from saga_dist.models.pooler import Pooler
from saga_dist.objectives.metric_losses import build_metric_loss

FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class LearnerMemory:
    """Bytes in the learner's process; a step's phases come one after the other."""

    tower: Weights
    pooler: Weights
    proxies: Weights
    tower_activations: TowerActivations
    images: int
    """Of one micro-batch, in one process."""
    token_bytes: int
    """Of one micro-batch: float32 leaf and its gradient."""
    checkpointing: bool
    fused_temporaries: bool
    """True on a GPU: AdamW steps all tensors at once and needs room for one more copy of them."""
    replay: ReplayMemory | None
    """Where replay runs in this process."""

    @property
    def trainable(self) -> Weights:
        """Tower, pooler and proxies."""
        parts = (self.tower, self.pooler, self.proxies)
        return Weights(sum(part.params for part in parts), sum(part.tensors for part in parts))

    @property
    def weights(self) -> int:
        """Trainable weights, float32."""
        return FLOAT32 * self.trainable.params

    @property
    def optimizer(self) -> int:
        """AdamW's two moments, and a step count per tensor."""
        return optimizer_bytes(self.trainable)

    @property
    def fixed(self) -> int:
        """What is there all the time."""
        return self.weights + self.optimizer + (self.replay.weights if self.replay else 0)

    def open_batches(self, count: float) -> int:
        """Returns what so many micro-batches keep until the step ends."""
        kept = self.tower_activations.bytes(self.images, checkpointing=self.checkpointing)
        return round(count * (kept + self.token_bytes))

    def peak(self, count: float) -> int:
        """Returns the largest sum over a step with so many micro-batches: encode, replay, backward, update."""
        gradients = FLOAT32 * self.trainable.params
        replay = self.replay.work if self.replay else 0
        backward = self.open_batches(count) + gradients
        update = gradients * (2 if self.fused_temporaries else 1)
        return self.fixed + max(self.open_batches(count) + replay, backward, update)


@dataclass(frozen=True, slots=True)
class ReplayMemory:
    """Bytes of one replay worker."""

    weights: int
    activations: ReplayActivations
    cache_copies: int
    """Keys and values of prompt and completions, once per completion."""
    cache_gradients: int
    """What completions leave at the prompt's keys and values."""
    logits: int

    @property
    def work(self) -> int:
        """On top of the weights, while a chunk is back-propagated."""
        kept = self.activations
        return kept.prefix + kept.chunk + self.cache_copies + self.cache_gradients + self.logits


@dataclass(frozen=True, slots=True)
class RolloutMemory:
    """Bytes of one rollout worker."""

    weights: int
    """The whole model: vLLM loads the tower too."""
    token_bytes: int
    """Keys and values of one token."""
    wanted_tokens: int
    """Cache for the groups that one worker generates at the same time."""

    @property
    def wanted_cache(self) -> int:
        """The same in bytes."""
        return self.wanted_tokens * self.token_bytes


def optimizer_bytes(trainable: Weights) -> int:
    """Returns the bytes of AdamW's state: two moments per parameter, one float32 step count per tensor."""
    return 2 * FLOAT32 * trainable.params + FLOAT32 * trainable.tensors


def learner_memory(
    config: RunConfig, shape: ModelShape, data: DataShape, *, on_gpu: bool, replay: ReplayMemory | None
) -> LearnerMemory:
    """Returns the bytes of one learner process.

    Args:
        config: of the run.
        shape: of its model.
        data: of its data set: proxies are per class.
        on_gpu: where it runs.
        replay: of the replay worker in the same process, if there is one.
    """
    processes = config.runtime.learner_processes
    images = -(-config.data.batch_size // processes)
    all_images = config.data.batch_size  # every process holds the tokens of the whole batch
    return LearnerMemory(
        tower=shape.tower.weights,
        pooler=pooler_weights(config, shape.decoder.width),
        proxies=proxy_weights(config, data.train_classes),
        tower_activations=tower_activations(shape, autocast=shape.dtype == torch.bfloat16),
        images=images,
        token_bytes=2 * FLOAT32 * all_images * shape.tower.tokens * shape.wire_width,
        checkpointing=config.optimizer.gradient_checkpointing,
        fused_temporaries=on_gpu,
        replay=replay,
    )


def pooler_weights(config: RunConfig, width: int) -> Weights:
    """Returns the size of the configured pooler."""
    model = config.model
    with torch.device("meta"):
        pooler = Pooler(model.pooler, key=model.pooler_key, width=width, embedding_dim=model.embedding_dim, seed=None)
    return Weights.of(pooler)


def proxy_weights(config: RunConfig, num_classes: int) -> Weights:
    """Returns the size of the metric loss's proxies: as many for every class."""

    def with_classes(count: int) -> Weights:
        loss = build_metric_loss(
            config.objective.metric_loss,
            num_classes=count,
            embedding_dim=config.model.embedding_dim,
            seed=0,
            **config.objective.metric_params,
        )
        return Weights.of(loss)

    two, three = with_classes(2), with_classes(3)
    return Weights(num_classes * (three.params - two.params), two.tensors)


def replay_memory(config: RunConfig, shape: ModelShape, token_counts: TokenCounts) -> ReplayMemory:
    """Returns the bytes of one replay worker at the mean length of a completion."""
    decoder, value = shape.decoder, shape.value_bytes
    rows = min(config.rollout.group_size, config.replay.completions_per_chunk)
    columns = round(token_counts.completion) + 1
    logits = min(config.replay.logits_chunk, rows * (columns - 1)) * decoder.vocabulary
    # The product (in ``dtype``), its float32 copy, log-softmax and gradient, and the gradient in ``dtype`` again.
    logit_bytes = 3 * FLOAT32 + (0 if value == FLOAT32 else 2 * value)
    return ReplayMemory(
        weights=decoder.weights.params * value,
        activations=replay_activations(shape, prefix=token_counts.prefix, rows=rows, columns=columns),
        cache_copies=rows * (token_counts.prompt - 1 + columns) * decoder.kv_bytes(value),
        cache_gradients=(token_counts.prompt - 1) * decoder.kv_bytes(value),
        logits=logits * logit_bytes,
    )


def rollout_memory(config: RunConfig, shape: ModelShape, token_counts: TokenCounts) -> RolloutMemory:
    """Returns the bytes of one rollout worker, all its tensor-parallel parts together."""
    rollout = config.rollout
    groups = min(rollout.groups_per_lease, -(-rollout.pairs_per_batch // max(1, rollout.workers)))
    sequences = min(rollout.max_sequences, groups * rollout.group_size)
    prompts = -(-sequences // rollout.group_size)
    return RolloutMemory(
        weights=(shape.tower.weights.params + shape.decoder.weights.params) * shape.value_bytes,
        token_bytes=shape.decoder.kv_bytes(shape.value_bytes),
        wanted_tokens=round(prompts * token_counts.prompt + sequences * token_counts.completion),
    )
