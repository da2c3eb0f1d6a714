"""Published settings of SAGA (arXiv 2606.15134) by configuration key, and how a configuration differs from them."""

from __future__ import annotations

from typing import NamedTuple

from saga_dist.config.run import RunConfig

NO_LIMIT = "no limit"
"""Published value of a key that the paper's method does not bound."""

PAPER_VALUES: dict[str, float | int | str | bool] = {
    "data.batch_size": 64,
    "data.color_jitter": 0.0,
    "data.crop": 1.0,
    "data.flip": False,
    "data.image_size": 224,
    "data.shift": 0.0,
    "data.val_fraction": 0.0,
    "model.dtype": "bfloat16",
    "model.embedding_dim": 4096,
    "model.path": "Qwen/Qwen3-VL-8B-Instruct",
    "model.pooler": "attention",
    "model.pooler_key": "linear",
    "model.pooler_layer_norm": False,
    "model.train": "all",
    "objective.balance": "none",
    "objective.kl_layer": 26,
    "objective.lambda_dml": 1.0,
    "objective.lambda_kl": 1.0,
    "objective.lambda_lm": 1.0,
    "objective.metric_loss": "potential_field",
    "objective.reward": "verdict",
    "objective.signal": "grpo",
    "optimizer.clip_norm": 1.0,
    "optimizer.lr_encoder": 2e-5,
    "optimizer.lr_pooler": 1e-4,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_fraction": 0.05,
    "prompt.order": "images_first",
    "prompt.variant": "structured",
    "rollout.contributing_groups": 8,
    "rollout.group_size": 8,
    "rollout.max_micro_batches": NO_LIMIT,
    "rollout.max_staleness": 0,
    "rollout.max_tokens": 1024,
    "rollout.temperature": 0.7,
    "rollout.top_p": 0.95,
}
"""Values of the paper's main results. Keys that it does not publish, and keys of resources and outputs, are absent."""


class Deviation(NamedTuple):
    """A setting that differs from the published one."""

    key: str
    """Configuration key, ``section.key``."""
    paper: float | int | str | bool
    """Published value."""
    configured: float | int | str | bool
    """Value of the configuration."""


def deviations(config: RunConfig) -> list[Deviation]:
    """Returns the settings of a configuration that differ from the published ones, by key.

    Values of model and data that follow from the choice of another model are among them.
    """
    found = []
    for key, paper in PAPER_VALUES.items():
        section, name = key.split(".")
        configured = getattr(getattr(config, section), name)
        if configured != paper:
            found.append(Deviation(key, paper, configured))
    return found
