"""Metrics of one optimizer step, as plain numbers named ``stage/quantity_unit``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import get_args

from saga_dist.config import RunConfig
from saga_dist.data.prompts import PromptSpec, load_vocabulary
from saga_dist.metrics.log import Stopwatch
from saga_dist.objectives.reward import VerdictForm, verdict_form
from saga_dist.protocols import GradientHandle, Runtime
from saga_dist.training.rollout_buffer import RolloutBuffer
from saga_dist.types import WEIGHT_QUANTILES, ScoredGroup


def step_metrics(
    buffer: RolloutBuffer,
    gradients: Sequence[GradientHandle],
    clock: Stopwatch,
    *,
    replay_is_remote: bool,
) -> dict[str, float]:
    """Returns the metrics of rollouts, replay and time.

    Args:
        buffer: all groups of the step.
        gradients: results of replay for the groups that trained.
        clock: seconds of the phases ``encode_ahead``, ``encode``, ``rollout``, ``replay`` and ``update``.
        replay_is_remote: True when replay runs in other processes, so that the learner is idle meanwhile.
    """
    metrics = {**buffer.metrics(), **mismatch_metrics(gradients)}
    if gradients:
        metrics["replay/tokens"] = float(buffer.num_tokens)
    if buffer.groups:
        metrics["rollout/tokens_per_s"] = sum(group.num_tokens for group in buffer.groups) / clock.seconds["rollout"]
    return metrics | time_metrics(clock, replay_is_remote=replay_is_remote)


def pool_metrics(runtime: Runtime) -> dict[str, float]:
    """Returns the metrics of both worker pools since the last call, named ``rollout_pool/`` and ``replay_pool/``."""
    pools = (("rollout_pool", runtime.rollouts), ("replay_pool", runtime.replays))
    return {f"{stage}/{name}": value for stage, pool in pools for name, value in pool.metrics().items()}


def time_metrics(clock: Stopwatch, *, replay_is_remote: bool) -> dict[str, float]:
    """Returns the seconds of a step and of its phases, and the share of the time in which the learner waits.

    Args:
        clock: seconds of the phases; those named in ``step_metrics`` that the step has, ``replay`` among them.
        replay_is_remote: True when replay runs in other processes, so that the learner is idle meanwhile.
    """
    seconds = clock.seconds
    wall_s = sum(seconds.values())
    waiting_s = seconds.get("rollout", 0.0) + (seconds["replay"] if replay_is_remote else 0.0)
    metrics = {f"step/{phase}_s": spent_s for phase, spent_s in seconds.items()}
    return metrics | {"step/wall_s": wall_s, "learner/idle_share": waiting_s / wall_s}


def verdict_key(config: RunConfig) -> str:
    """Returns the JSON key of the verdict in a run's answers.

    Raises:
        ConfigError: the vocabulary or the prompt template cannot be loaded.
    """
    settings = config.prompt
    return PromptSpec(load_vocabulary(settings.vocabulary), settings.variant, settings.order).verdict_key


def verdict_form_metrics(groups: Sequence[ScoredGroup], key: str) -> dict[str, float]:
    """Returns the shares of completions, in [0, 1], that give their verdict in each form; {} without groups.

    ``rollout/verdict_form_strict_share`` is the form that the prompt asks for, ``_repaired_share`` any other in which
    the verdict can be read, and ``_none_share`` no verdict (``objectives.reward.verdict_form``). They add up to 1.

    Args:
        groups: all groups of the step.
        key: JSON key of the verdict.
    """
    texts = [text for group in groups for text in group.completions.texts]
    if not texts:
        return {}
    forms: Counter[str] = Counter()
    for text, count in Counter(texts).items():  # completions of a group are often equal
        forms[verdict_form(text, key)] += count
    return {f"rollout/verdict_form_{form}_share": forms[form] / len(texts) for form in get_args(VerdictForm)}


def mismatch_metrics(gradients: Sequence[GradientHandle]) -> dict[str, float]:
    """Returns the mismatch of replay and engine log-probabilities per token, and importance weights of stale rollouts.

    A quantile of the weights is the mean over groups; the minimum and the maximum are those of all tokens.

    Args:
        gradients: results of replay for the groups that trained.
    """
    total = sum(gradient.num_tokens for gradient in gradients)
    if not total:
        return {}

    def per_token(values: Sequence[float]) -> float:
        weighted = (value * gradient.num_tokens for value, gradient in zip(values, gradients, strict=True))
        return sum(weighted) / total

    mismatches = [gradient.mismatch for gradient in gradients]
    metrics = {
        "replay/log_prob_gap_mean": per_token([one.log_prob_gap for one in mismatches]),
        "replay/mismatch_kl": per_token([one.mismatch_kl for one in mismatches]),
    }
    weighted = [one.weight_quantiles for one in mismatches if one.weight_quantiles]
    if weighted:
        metrics["importance/truncated_share"] = per_token([one.truncated_share for one in mismatches])
        for column, quantile in enumerate(WEIGHT_QUANTILES):
            values = [row[column] for row in weighted]
            pick = {0.0: min(values), 1.0: max(values)}.get(quantile, sum(values) / len(values))
            metrics[f"importance/weight_p{round(100 * quantile)}"] = pick
    return metrics
