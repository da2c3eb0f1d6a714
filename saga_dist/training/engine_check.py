"""The start-up check that the rollout engine and replay compute the same model.

Two implementations compute log-probabilities from the same encoder tokens: the engine (vLLM's kernels) and replay
(torch). A wrong position, a missing DeepStack level or another revision of the weights shows as a difference of the
log-probabilities. Without the check, the gradients would belong to another model than the completions.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from saga_dist.config import RunConfig
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import TrainingError
from saga_dist.protocols import Runtime
from saga_dist.types import ReplayTask, RolloutTask, Sampling
from saga_dist.utils.rng import counter_seed
from saga_dist.utils.waiting import announced
from saga_dist.workers.serial_pool import run_all

log = logging.getLogger(__name__)

PAIRS, COMPLETIONS, MAX_TOKENS = 2, 2, 64
"""Size of the check: pairs, completions of each pair, and the largest number of tokens of a completion."""


def check_engine(config: RunConfig, runtime: Runtime, sampler: ClassBalancedSampler) -> float:
    """Returns the mean absolute difference of engine and replay log-probabilities on a few completions, nats per token.

    Args:
        config: configuration of the run.
        runtime: learner and worker pools.
        sampler: provides the pairs.

    Raises:
        TrainingError: the difference is larger than ``rollout.max_log_prob_gap``.
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
    gap = sum(one.mismatch.log_prob_gap * one.num_tokens for one in gradients) / total
    kl = sum(one.mismatch.mismatch_kl * one.num_tokens for one in gradients) / total
    log.info("engine and replay differ by %.2g nats per token (KL %.2g) on %d tokens", gap, kl, total)
    if not gap <= settings.max_log_prob_gap:
        raise TrainingError(
            f"engine and replay log-probabilities differ by {gap:.3g} nats per token",
            where="start-up check",
            expected=f"at most rollout.max_log_prob_gap = {settings.max_log_prob_gap:g}",
            fix="check that both load the same weights, revision and dtype; `saga-dist doctor` shows them",
        )
    return gap
