"""The extension points that configuration keys name, and their built-in objects.

Built-ins are import paths: reading a configuration imports none of them. The modules that use an extension point load
its objects and check what they return.
"""

from __future__ import annotations

from typing import Any

from pydantic import AfterValidator

from saga_dist.errors import ConfigError
from saga_dist.utils.registry import Registry

_LOSSES = "saga_dist.objectives.builtin_metric_losses"
METRIC_LOSSES: Registry[Any] = Registry(
    "metric loss",
    "objective.metric_loss",
    {name: f"{_LOSSES}:{name}" for name in ("potential_field", "proxy_anchor", "multi_similarity", "infonce")},
)
"""Objects are ``objectives.metric_losses.MetricLossFactory``."""

_TEMPLATES = "saga_dist.data.prompt_templates"
PROMPT_TEMPLATES: Registry[Any] = Registry(
    "prompt template",
    "prompt.variant",
    {"structured": f"{_TEMPLATES}:STRUCTURED", "generic": f"{_TEMPLATES}:GENERIC"},
)
"""Objects are ``data.prompt_templates.PromptTemplate``."""

REWARDS: Registry[Any] = Registry(
    "reward",
    "objective.reward",
    {"verdict": "saga_dist.objectives.reward_fn:score_verdict"},
)
"""Objects are ``objectives.reward_fn.RewardFn``."""


def name_in(registry: Registry[Any]) -> AfterValidator:
    """Returns the validator of a key whose value is a built-in name or an import path; it imports nothing."""

    def check(name: str) -> str:
        try:
            registry.check(name)
        except ConfigError as error:  # pydantic takes a ValueError, and adds file and key itself
            raise ValueError(str(error).removeprefix(f"{registry.key}: ")) from error
        return name

    return AfterValidator(check)
