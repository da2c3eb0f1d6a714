"""Bytes of the parts of a run, and which of them exist at the same time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from saga_dist.config import RunConfig
from saga_dist.estimate.activations import ReplayActivations, TowerActivations, replay_activations, tower_activations
from saga_dist.estimate.data import DataShape
from saga_dist.estimate.parameters import ParameterCount
from saga_dist.estimate.shapes import ModelShape
from saga_dist.estimate.token_counts import TokenCounts
from saga_dist.estimate.trained_part import TrainedPart
from saga_dist.models.pooler import Pooler
from saga_dist.objectives.metric_losses import build_metric_loss
from saga_dist.workers.replay_chunks import CPU_CHUNK_TOKENS

FLOAT32 = 4
"""Bytes of one float32 number."""


@dataclass(frozen=True, slots=True)
class LearnerMemory:
    """Memory of one learner process, in which the phases of a step run one after the other."""

    tower: ParameterCount
    """Size of the encoder tower, without low-rank updates."""
    trained: TrainedPart
    """Part of the tower that trains."""
    pooler: ParameterCount
    """Size of the pooler."""
    proxies: ParameterCount
    """Size of the metric loss's proxies."""
    tower_activations: TowerActivations
    """Bytes that autograd saves in the tower."""
    images: int
    """Images per micro-batch in this process."""
    token_bytes: int
    """Bytes of one micro-batch's encoder tokens at the autograd boundary: a float32 leaf and its gradient."""
    checkpointing: bool
    """True when the tower uses gradient checkpointing."""
    fused_temporaries: bool
    """True on a GPU, where AdamW updates all tensors at once and allocates one more copy of the parameters' size."""
    replay: ReplayMemory | None
    """Memory of replay when it runs in this process; None when replay has workers, or no MLLM is needed."""

    @property
    def trainable(self) -> ParameterCount:
        """Size of all that trains: the part of the tower, pooler and proxies."""
        parts = (self.trained.weights, self.pooler, self.proxies)
        return ParameterCount(sum(part.params for part in parts), sum(part.tensors for part in parts))

    @property
    def trained_weights(self) -> int:
        """Bytes of the weights that train, in float32; a checkpoint has these and no others."""
        return FLOAT32 * self.trainable.params

    @property
    def weights(self) -> int:
        """Bytes of all weights, in float32."""
        return FLOAT32 * (self.tower.params + self.trained.added + self.pooler.params + self.proxies.params)

    @property
    def optimizer(self) -> int:
        """Bytes of AdamW's two moments and of one step count per tensor."""
        return optimizer_bytes(self.trainable)

    @property
    def persistent(self) -> int:
        """Bytes that are allocated during the whole run: weights, optimizer state, and the backbone if it is here."""
        return self.weights + self.optimizer + (self.replay.weights if self.replay else 0)

    def open_micro_batches(self, count: float) -> int:
        """Returns the bytes of activations and tokens that ``count`` micro-batches hold until the step ends.

        Their passes through the tower share one copy of its weights in the autocast dtype.
        """
        activations = self.tower_activations.bytes(count * self.images, checkpointing=self.checkpointing)
        return round(activations + count * self.token_bytes)

    def peak(self, count: float) -> int:
        """Returns the peak bytes of a step with ``count`` micro-batches: the largest of replay, backward and update."""
        gradients = FLOAT32 * self.trainable.params
        replay = self.replay.working_set if self.replay else 0
        backward = self.open_micro_batches(count) + gradients
        update = gradients * (2 if self.fused_temporaries else 1)
        return self.persistent + max(self.open_micro_batches(count) + replay, backward, update)


@dataclass(frozen=True, slots=True)
class ReplayMemory:
    """Memory of one replay worker, in bytes."""

    weights: int
    """Bytes of the frozen language model."""
    activations: ReplayActivations
    """Bytes that autograd saves for prefix and chunk."""
    cache_copies: int
    """Bytes of the prompt's keys and values that padded completions copy, one for each query head; 0 when packed."""
    cache_gradients: int
    """Bytes of the gradients of the prompt's keys and values, which all completions add to."""
    logits: int
    """Bytes of the logits of one chunk of positions, with temporaries and gradient."""

    @property
    def working_set(self) -> int:
        """Bytes besides the weights during the backward pass of one chunk."""
        saved = self.activations
        return saved.prefix + saved.chunk + self.cache_copies + self.cache_gradients + self.logits


@dataclass(frozen=True, slots=True)
class RolloutMemory:
    """Memory of one rollout worker, all its tensor-parallel ranks together."""

    weights: int
    """Bytes of the whole model, the tower included, because vLLM loads it too."""
    kv_token_bytes: int
    """Bytes of the keys and values of one token."""
    kv_cache_tokens: int
    """Tokens of KV cache needed for the groups that one worker generates at the same time."""

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of KV cache needed for the groups that one worker generates at the same time."""
        return self.kv_cache_tokens * self.kv_token_bytes


def optimizer_bytes(trainable: ParameterCount) -> int:
    """Returns the bytes of AdamW's state: two moments per parameter, one float32 step count per tensor."""
    return 2 * FLOAT32 * trainable.params + FLOAT32 * trainable.tensors


def learner_memory(
    config: RunConfig, shape: ModelShape, data: DataShape, *, on_gpu: bool, replay: ReplayMemory | None
) -> LearnerMemory:
    """Returns the memory of one learner process.

    Args:
        config: configuration of the run.
        shape: sizes of its model.
        data: sizes of its data set; the metric loss has proxies for each class.
        on_gpu: True when the learner runs on a GPU.
        replay: memory of replay in the same process; None when it does not run there.
    """
    processes = config.runtime.learner_processes
    images = -(-config.data.batch_size // processes)
    all_images = config.data.batch_size  # every process gathers the tokens of the whole batch
    return LearnerMemory(
        tower=shape.tower.weights,
        trained=shape.tower.trained,
        pooler=pooler_weights(config, shape.decoder.width),
        proxies=proxy_weights(config, data.train_classes),
        tower_activations=tower_activations(shape, autocast=shape.dtype == torch.bfloat16),
        images=images,
        token_bytes=2 * FLOAT32 * all_images * shape.tower.tokens * shape.wire_width,
        checkpointing=config.optimizer.gradient_checkpointing,
        fused_temporaries=on_gpu,
        replay=replay,
    )


def pooler_weights(config: RunConfig, width: int) -> ParameterCount:
    """Returns the size of the configured pooler."""
    model = config.model
    with torch.device("meta"):
        pooler = Pooler(model.pooler, key=model.pooler_key, width=width, embedding_dim=model.embedding_dim, seed=None)
    return ParameterCount.of(pooler)


def proxy_weights(config: RunConfig, num_classes: int) -> ParameterCount:
    """Returns the size of the metric loss's proxies, of which every class has the same number."""

    def loss_size(count: int) -> ParameterCount:
        loss = build_metric_loss(
            config.objective.metric_loss,
            num_classes=count,
            embedding_dim=config.model.embedding_dim,
            seed=0,
            **config.objective.metric_params,
        )
        return ParameterCount.of(loss)

    # Losses of two and of three classes give the parameters per class without building the real size.
    two, three = loss_size(2), loss_size(3)
    return ParameterCount(num_classes * (three.params - two.params), two.tensors)


def replay_memory(config: RunConfig, shape: ModelShape, token_counts: TokenCounts, *, on_gpu: bool) -> ReplayMemory:
    """Returns the memory of one replay worker for the largest chunk of the longest completions.

    Args:
        config: configuration of the run.
        shape: sizes of the model.
        token_counts: tokens of the prompt.
        on_gpu: True when replay runs on a GPU, where completions run packed in bfloat16 only.
    """
    decoder, value = shape.decoder, shape.value_bytes
    packed = not on_gpu or shape.dtype == torch.bfloat16
    limit = config.replay.tokens_per_chunk if on_gpu else min(config.replay.tokens_per_chunk, CPU_CHUNK_TOKENS)
    chunk = largest_chunk(longest_completion(config, token_counts), config.completions_at_once, limit, packed=packed)
    lengths = [length + 1 for length in chunk]  # the prompt's last token runs with every completion
    logits = min(config.replay.logits_chunk, sum(chunk)) * decoder.vocabulary
    # Logits in ``dtype``, their float32 copy, log-softmax and gradient, and the gradient in ``dtype``.
    logit_bytes = 3 * FLOAT32 + (0 if value == FLOAT32 else 2 * value)
    prompt, shared = token_counts.prompt - 1, decoder.heads // decoder.kv_heads
    return ReplayMemory(
        weights=decoder.weights.params * value,
        activations=replay_activations(shape, prefix=token_counts.group_prefix, lengths=lengths),
        cache_copies=0 if packed else len(lengths) * prompt * shared * decoder.kv_bytes(value),
        cache_gradients=prompt * decoder.kv_bytes(value),
        logits=logits * logit_bytes,
    )


def longest_completion(config: RunConfig, token_counts: TokenCounts) -> int:
    """Returns the most tokens of a completion: ``rollout.max_tokens``, or those of a verdict."""
    return config.rollout.max_tokens if config.objective.needs_rollouts else math.ceil(token_counts.completion)


def largest_chunk(longest: int, completions: int, most_tokens: int, *, packed: bool) -> list[int]:
    """Returns the tokens of each completion in the largest chunk of replay.

    Args:
        longest: most tokens of a completion.
        completions: largest number of completions in a chunk.
        most_tokens: largest number of tokens in a chunk; a longer completion is alone.
        packed: True when completions run packed, so that shorter ones may fill the rest of the chunk.
    """
    whole = min(completions, max(1, most_tokens // longest))
    rest = most_tokens - whole * longest if packed and whole < completions else 0
    return [longest] * whole + ([rest] if rest > 0 else [])


def rollout_memory(config: RunConfig, shape: ModelShape, token_counts: TokenCounts) -> RolloutMemory:
    """Returns the memory of one rollout worker, whose completions may all have ``rollout.max_tokens``."""
    rollout = config.rollout
    groups = min(rollout.groups_per_lease, -(-rollout.pairs_per_batch // max(1, rollout.workers)))
    sequences = min(rollout.max_sequences, groups * rollout.group_size)
    prompts = -(-sequences // rollout.group_size)
    return RolloutMemory(
        weights=(shape.tower.weights.params + shape.decoder.weights.params) * shape.value_bytes,
        kv_token_bytes=shape.decoder.kv_bytes(shape.value_bytes),
        kv_cache_tokens=prompts * token_counts.prompt + sequences * rollout.max_tokens,
    )
