"""Check of the sampling parameters: vLLM refuses or replaces values that other engines take."""

from __future__ import annotations

import os

from saga_dist.errors import ConfigError
from saga_dist.runtime.validation.facts import RunFacts

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 2.0
"""Temperatures that vLLM samples with. It refuses higher ones, and samples with the lowest one in place of lower ones,
while replay would take the completions to be of the configured one."""
MOST_COMPLETIONS_VARIABLE, MOST_COMPLETIONS = "VLLM_MAX_N_SEQUENCES", 16384
"""Environment variable with the most completions of one request of vLLM, and its default."""


def check_sampling(run: RunFacts) -> str:
    """Checks temperature and completions of a pair against the limits of vLLM, where it is the engine.

    The other parameters have the same range in the configuration as in vLLM.

    Raises:
        ConfigError: vLLM would not sample with them.
    """
    rollout = run.config.rollout
    if not run.config.needs_engine or rollout.engine != "vllm":
        return ""
    if not LOWEST_TEMPERATURE <= rollout.temperature <= HIGHEST_TEMPERATURE:
        raise ConfigError(
            f"rollout.temperature = {rollout.temperature:g}",
            where='rollout.engine = "vllm"',
            expected=f"{LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}, which vLLM samples with",
            fix="set rollout.temperature within it (paper: 0.7), or rollout.engine = transformers",
        )
    most = int(os.environ.get(MOST_COMPLETIONS_VARIABLE, MOST_COMPLETIONS))
    if rollout.group_size > most:
        raise ConfigError(
            f"rollout.group_size = {rollout.group_size}",
            where='rollout.engine = "vllm"',
            expected=f"at most {most}, vLLM's limit for one request",
            fix=f"lower rollout.group_size (paper: 8), or set {MOST_COMPLETIONS_VARIABLE}",
        )
    return ""
