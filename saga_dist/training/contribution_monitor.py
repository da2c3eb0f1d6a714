"""Warns about a run to which the frozen MLLM contributes nothing, and says why; its remark stands in the results."""

from __future__ import annotations

import logging
import statistics
from collections import deque
from collections.abc import Mapping, Sequence

from saga_dist.config import RunConfig

log = logging.getLogger(__name__)

ALMOST_ALL = 0.95
"""Share of completions from which a message says that something holds of them all."""
FEW_STEPS = 0.1
"""Share of a run's steps below which the results remark that the MLLM contributed to few of them."""


def contributes(metrics: Mapping[str, float]) -> bool | None:
    """Returns True when the MLLM contributed a gradient to a step; None for a row without metrics of it.

    Args:
        metrics: metrics of one step, with those of ``RolloutBuffer.metrics`` or of ``verdict_metrics``.
    """
    if "verdict/pairs" in metrics:
        return metrics["verdict/pairs"] > 0
    if "rollout/groups" in metrics:
        return metrics.get("rollout/contributing_share", 0.0) > 0
    return None


def idle_cause(steps: Sequence[Mapping[str, float]], config: RunConfig) -> str:
    """Returns why the MLLM contributed nothing to some steps, and the setting to change.

    Args:
        steps: metrics of these steps; at least one.
        config: configuration of the run.
    """

    def mean(name: str) -> float:
        return statistics.fmean(step.get(f"rollout/{name}", 0.0) for step in steps)

    rollout = config.rollout
    if not any(step.get("rollout/groups") for step in steps):
        return "workers failed on every pair; see their reasons in ledger.jsonl"
    if mean("truncated_share") >= ALMOST_ALL:
        return f"completions are cut off at rollout.max_tokens = {rollout.max_tokens}; raise it"
    if mean("unparseable_share") >= ALMOST_ALL:
        return (
            f"no verdict can be read from the completions ({100 * mean('json_valid_share'):.0f} % are JSON); check "
            "prompt.variant, prompt.vocabulary and model.path"
        )
    for share, word in ((mean("reward_mean"), "rewarded"), (1 - mean("reward_mean"), "without a reward")):
        if share >= ALMOST_ALL:
            return f"all completions are {word}, so that none is better than another; raise rollout.temperature"
    return (
        f"the {rollout.group_size} completions of each pair agree; raise rollout.temperature (now "
        f"{rollout.temperature:g}) or rollout.group_size"
    )


def contribution_remark(steps: Sequence[Mapping[str, float]], config: RunConfig) -> str | None:
    """Returns one line when the MLLM contributed to few steps of a run or to none; else None.

    Args:
        steps: metrics of all steps.
        config: configuration of the run.
    """
    known = [step for step in steps if contributes(step) is not None]
    idle = [step for step in known if not contributes(step)]
    if not idle or len(known) - len(idle) >= FEW_STEPS * len(known):
        return None
    return f"the frozen MLLM contributed to {len(known) - len(idle)} of {len(known)} steps: {idle_cause(idle, config)}"


class ContributionMonitor:
    """Logs one warning when the MLLM contributes nothing to ``objective.idle_steps`` consecutive steps.

    A run that trains with the metric loss alone is not warned of.

    Args:
        config: the whole configuration.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._idle: deque[Mapping[str, float]] = deque(maxlen=config.objective.idle_steps)
        self._watches = config.objective.idle_steps > 0 and config.objective.needs_mllm
        """False when there is nothing to warn of, or when it was warned of."""

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one step."""
        if not self._watches or contributes(metrics) is None:
            return
        if contributes(metrics):
            self._idle.clear()
            return
        self._idle.append(metrics)
        if len(self._idle) == self._idle.maxlen:
            self._watches = False
            cause = idle_cause(self._idle, self._config)
            log.warning("the frozen MLLM contributed nothing to the last %d steps: %s", len(self._idle), cause)
