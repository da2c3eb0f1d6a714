"""The start-up check that the rollout engine and replay compute the same model.

Two implementations compute log-probabilities from the same encoder tokens: the engine (vLLM's kernels) and replay
(torch). A wrong position, a missing DeepStack level or another revision of the weights shows as a difference of the
log-probabilities. Without the check, the gradients would belong to another model than the completions.

In float32 the two agree to rounding on every token, so the mean difference is judged. In bfloat16 two right programs
differ: published means of vLLM against transformers reach 0.046 nats per token, most of it on few tokens. There the
median and the estimate of KL(engine || replay) are judged, which noise moves little and a wrong model much.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from saga_dist.config import RunConfig
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import TrainingError
from saga_dist.protocols import GradientHandle, Runtime
from saga_dist.types import ReplayTask, RolloutTask, Sampling, ScoredGroup
from saga_dist.utils.rng import counter_seed
from saga_dist.utils.waiting import announced
from saga_dist.workers.serial_pool import run_all

log = logging.getLogger(__name__)

PAIRS, COMPLETIONS, MAX_TOKENS = 2, 2, 64
"""Size of the check: pairs, completions of each pair, and the largest number of tokens of a completion."""


@dataclass(frozen=True, slots=True)
class EngineGap:
    """Differences between the log-probabilities of engine and replay on the same tokens, nats per token."""

    mean: float
    """Mean of |log p_engine - log p_replay|."""
    median: float
    """Median of the same."""
    kl: float
    """Estimate of KL(engine || replay)."""
    num_tokens: int
    """Number of compared tokens."""

    @classmethod
    def of(cls, groups: Sequence[ScoredGroup], gradients: Sequence[GradientHandle]) -> EngineGap:
        """Returns the differences on some groups.

        Args:
            groups: groups of the engine.
            gradients: the result of replay for each of them. Where it has no log-probabilities of single tokens, the
                mean stands for the median.
        """
        num_tokens = sum(group.num_tokens for group in groups)
        mean, kl = (
            sum(getattr(one.mismatch, name) * one.num_tokens for one in gradients) / num_tokens
            for name in ("log_prob_gap", "mismatch_kl")
        )
        differences = [
            np.abs(replayed_T - sampled_T)
            for group, one in zip(groups, gradients, strict=True)
            for replayed_T, sampled_T in zip(one.mismatch.replayed, group.completions.log_probs, strict=False)
        ]
        return cls(mean, float(np.median(np.concatenate(differences))) if differences else mean, kl, num_tokens)

    def excess(self, dtype: str, limit: float) -> str:
        """Returns the figures that exceed the limit, as text; empty when the two programs agree.

        Args:
            dtype: ``model.dtype``. In float32 the mean is judged, in bfloat16 the median and the KL estimate.
            limit: largest value of each, nats per token.
        """
        judged = {"mean": self.mean} if dtype == "float32" else {"median": self.median, "KL": self.kl}
        return ", ".join(f"{name} {value:.3g}" for name, value in judged.items() if not value <= limit)  # NaN too

    def __str__(self) -> str:
        return f"mean {self.mean:.2g}, median {self.median:.2g}, KL {self.kl:.2g} nats per token"


def check_engine(config: RunConfig, runtime: Runtime, sampler: ClassBalancedSampler) -> EngineGap:
    """Returns the differences between engine and replay log-probabilities on a few completions.

    Args:
        config: configuration of the run.
        runtime: learner and worker pools.
        sampler: provides the pairs.

    Raises:
        TrainingError: a difference is larger than ``rollout.max_log_prob_gap``.
    """
    settings = config.rollout
    batch = replace(sampler.micro_batch(0, 0, PAIRS), step=runtime.learner.step)
    batch = replace(batch, pairs=tuple(replace(pair, pair_id=f"check-{pair.pair_id}") for pair in batch.pairs))
    handles = runtime.learner.encode_no_grad(batch).handles
    tokens = {pair.pair_id: handle for pair, handle in zip(batch.pairs, handles, strict=True)}
    sampling = Sampling(
        num_completions=COMPLETIONS,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=min(MAX_TOKENS, settings.max_tokens),
        seed=counter_seed(config.run.seed, "engine check"),
    )
    tasks = [RolloutTask(pair, tokens[pair.pair_id], sampling) for pair in batch.pairs]
    with announced("the first rollouts", lambda: "a few completions that check engine against replay"):
        groups = run_all(runtime.rollouts, tasks)
    total = sum(group.num_tokens for group in groups)
    replays = [ReplayTask(group, tokens[group.pair_id], total, want_attention=False) for group in groups]
    with announced("the first replay"):
        gradients = run_all(runtime.replays, replays)
    gap = EngineGap.of(groups, gradients)
    log.info("log-probabilities of engine and replay differ by %s on %d tokens", gap, gap.num_tokens)
    excess = gap.excess(config.model.dtype, settings.max_log_prob_gap)
    if excess:
        raise TrainingError(
            f"engine and replay log-probabilities differ by {excess} nats per token ({gap})",
            where="start-up check",
            expected=f"at most rollout.max_log_prob_gap = {settings.max_log_prob_gap:g}",
            fix="check that both load the same weights, revision and dtype; `saga-dist doctor` shows them",
        )
    return gap
