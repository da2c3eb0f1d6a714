"""Bytes of records in the object store and of files on disk, measured in the wire format itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from saga_dist.config import RunConfig
from saga_dist.estimate.memory import FLOAT32, LearnerMemory
from saga_dist.estimate.sampling import DynamicSampling
from saga_dist.estimate.shapes import ModelShape
from saga_dist.estimate.token_counts import ANSWER_CHARACTERS_PER_TOKEN, TokenCounts
from saga_dist.types import (
    Completions,
    EncoderTokens,
    ImagePair,
    LogProbMismatch,
    Sampling,
    ScoredGroup,
    TokenGradients,
)
from saga_dist.wire import gradients_to_batch, groups_to_batch, tokens_to_batch

PAIR_ID = "s000001.m0.p00"
"""Pair id of usual length, for the example records."""


@dataclass(frozen=True, slots=True)
class Payloads:
    """Bytes of a run's records."""

    tokens: int
    """Bytes of the encoder tokens of one pair."""
    gradients: int
    """Bytes of the token gradients of one pair; they pass the object store only when replay has workers."""
    group: int
    """Bytes of one scored group."""
    step: int
    """Bytes put into the object store in an average step."""
    store_peak: int
    """Bytes in the object store at the same time, in a step with the 99th percentile of micro-batches."""

    def recording(self, config: RunConfig, sampling: DynamicSampling) -> int:
        """Returns the bytes of the recordings in ``rollouts/`` after the whole run; 0 when nothing is recorded."""
        if not (config.rollout.record and config.objective.needs_rollouts):
            return 0
        return round(config.run.steps * sampling.micro_batches_mean * config.rollout.pairs_per_batch * self.group)


def payloads(config: RunConfig, shape: ModelShape, token_counts: TokenCounts, sampling: DynamicSampling) -> Payloads:
    """Returns the bytes of records, measured on records of the run's sizes that hold zeros."""
    tokens = EncoderTokens(
        pair_id=PAIR_ID,
        values_NW=torch.zeros(2 * shape.tower.tokens, shape.wire_width, dtype=shape.dtype),
        lengths=(shape.tower.tokens,) * 2,
        grids=(shape.grid,) * 2,
        num_deepstack=shape.family.layout.num_deepstack,
        encoder_version=0,
    )
    token_bytes = int(tokens_to_batch(tokens).nbytes)
    gradient_bytes = int(gradients_to_batch(_gradients(tokens)).nbytes)
    group_bytes = int(groups_to_batch([_group(config.rollout.group_size, round(token_counts.completion))]).nbytes)
    pairs = config.rollout.pairs_per_batch if config.objective.needs_mllm else 0
    scored_bytes = group_bytes if config.objective.needs_rollouts else 0
    gradients = sampling.trained_groups * gradient_bytes if config.replay.workers else 0.0
    max_staleness = config.rollout.max_staleness

    def batch_bytes(count: float, token_copies: int) -> float:
        return count * pairs * (token_copies * token_bytes + scored_bytes)

    # Prefetched batches are encoded again when their step comes.
    step = batch_bytes(sampling.micro_batches_mean, 2 if max_staleness else 1) + gradients
    peak = batch_bytes(sampling.micro_batches_p99, 1 + max_staleness) + gradients
    return Payloads(token_bytes, gradient_bytes, group_bytes, round(step), round(peak))


def checkpoint_bytes(learner: LearnerMemory) -> int:
    """Returns the bytes of one checkpoint: the weights that train, and optimizer state."""
    return learner.trained_weights + learner.optimizer


def disk_bytes(config: RunConfig, learner: LearnerMemory) -> int:
    """Returns the bytes of the deployable encoder and of all checkpoints that can exist at the same time.

    These are the ``checkpoint.keep`` newest ones, the one that is being written and, with validation classes, the best.
    """
    count = config.checkpoint.keep + 1 + (1 if config.data.val_fraction else 0)
    return count * checkpoint_bytes(learner) + FLOAT32 * (learner.tower.params + learner.pooler.params)


def _gradients(tokens: EncoderTokens) -> TokenGradients:
    """Returns token gradients of zeros for a pair's tokens."""
    attention_N = torch.zeros(tokens.lengths[0])
    return TokenGradients(
        pair_id=tokens.pair_id,
        values_NW=tokens.values_NW.float(),
        attention_a_N=attention_N,
        attention_b_N=attention_N,
        negative_entropy=0.0,
        num_attended=1,
        loss=0.0,
        num_tokens=1,
        mismatch=LogProbMismatch(0.0, 0.0),
        encoder_version=0,
    )


def _group(size: int, length: int) -> ScoredGroup:
    """Returns a group of ``size`` completions of ``length`` tokens each."""
    sampling = Sampling(num_completions=size, temperature=0.7, top_p=0.95, max_tokens=length, seed=0)
    mask_T = np.zeros(length, dtype=bool)
    return ScoredGroup(
        pair=ImagePair(PAIR_ID, 0, 1, 0, 1),
        completions=Completions(
            pair_id=PAIR_ID,
            token_ids=((0,) * length,) * size,
            texts=("x" * round(length * ANSWER_CHARACTERS_PER_TOKEN),) * size,
            log_probs=(np.zeros(length, np.float32),) * size,
            finish_reasons=("stop",) * size,
            sampling=sampling,
            encoder_version=0,
        ),
        verdicts=(True,) * size,
        rewards_G=np.zeros(size, np.float32),
        is_correct_G=np.zeros(size, bool),
        advantages_G=np.zeros(size, np.float32),
        describes_a=(mask_T,) * size,
        describes_b=(mask_T,) * size,
    )
