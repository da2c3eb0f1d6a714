"""The extension points that configuration keys name, and their built-in objects.

A built-in object is given by its import path, so that reading a configuration does not import it. The modules that use
an extension point load its objects and check their results.
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
"""Extension point for metric losses; its objects are ``objectives.metric_losses.MetricLossFactory``."""

_TEMPLATES = "saga_dist.data.prompt_templates"
PROMPT_TEMPLATES: Registry[Any] = Registry(
    "prompt template",
    "prompt.variant",
    {"structured": f"{_TEMPLATES}:STRUCTURED", "generic": f"{_TEMPLATES}:GENERIC"},
)
"""Extension point for prompt templates; its objects are ``data.prompt_templates.PromptTemplate``."""

REWARDS: Registry[Any] = Registry(
    "reward",
    "objective.reward",
    {"verdict": "saga_dist.objectives.reward_fn:score_verdict"},
)
"""Extension point for rewards; its objects are ``objectives.reward_fn.RewardFn``."""

ENGINES: Registry[Any] = Registry(
    "rollout engine",
    "rollout.engine",
    {
        "vllm": "saga_dist.workers.engines.vllm_engine:VllmEngine.from_context",
        "transformers": "saga_dist.workers.engines.transformers_engine:TransformersEngine.from_context",
    },
)
"""Extension point for rollout engines; its objects are ``workers.engines.factory.EngineFactory``."""

MODEL_FAMILIES: Registry[Any] = Registry(
    "model family",
    "model.family",
    {
        "qwen3_vl": "saga_dist.models.families.qwen3_vl.family:Qwen3VLFamily",
        "qwen2_5_vl": "saga_dist.models.families.qwen2_5_vl.family:Qwen25VLFamily",
        "internvl": "saga_dist.models.families.internvl.family:InternVLFamily",
    },
)
"""Extension point for model families; its objects are subclasses of ``models.families.base.Family``."""

LAYOUTS: Registry[Any] = Registry(
    "data layout",
    "data.layout",
    {
        "birds": "saga_dist.standin.world:load_birds",
        "folder": "saga_dist.data.layouts.folder:load_folder",
        "manifest": "saga_dist.data.layouts.manifest:load_manifest",
        "cub": "saga_dist.data.layouts.cub:load_cub",
        "cars": "saga_dist.data.layouts.cars:load_cars",
        "aircraft": "saga_dist.data.layouts.aircraft:load_aircraft",
        "inat": "saga_dist.data.layouts.inat:load_inat",
        "sop": "saga_dist.data.layouts.sop:load_sop",
        "inshop": "saga_dist.data.layouts.inshop:load_inshop",
        "webdataset": "saga_dist.data.layouts.webdataset:load_webdataset",
        "hf_dataset": "saga_dist.data.layouts.hf_dataset:load_hf_dataset",
    },
)
"""Extension point for data layouts; its objects are ``data.layouts.Layout``."""


def name_in(registry: Registry[Any], *, besides: str = "") -> AfterValidator:
    """Returns the validator of a key whose value is a built-in name or an import path; it does not import the object.

    Args:
        registry: the extension point.
        besides: another valid value of the key, which names no object; empty for none.
    """

    def check(name: str) -> str:
        try:
            if name != besides:
                registry.check(name)
        except ConfigError as error:  # pydantic expects a ValueError and adds the key to its message
            reason = str(error).removeprefix(f"{registry.key}: ")
            raise ValueError(f"{reason}, or {besides}" if besides else reason) from error
        return name

    return AfterValidator(check)
