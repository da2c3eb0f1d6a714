"""Rates of ``saga-dist estimate`` that the sections measure; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saga_dist.diagnostics.gpu_check.sizes import CheckSize

RATE_OF = {
    "encoder": ("learner", "encoder_flops_per_s"),
    "backward": ("learner", "backward_flops_per_s"),
    "update": ("learner", "update_bytes_per_s"),
    "replay": ("replay", "flops_per_s"),
    "rollout_tokens": ("engine", "tokens_per_s"),
}
"""Section and result of each measured field of ``estimate.rates.Rates``. Without the engine's section, ``prefill``,
``decode``, ``decode_operations`` and ``engine_step`` stay assumed; ``encode_overhead`` (images read from disk) and
``link`` (a second card) always do."""


def measured_rates(results: Mapping[str, Mapping[str, Any]], size: CheckSize) -> dict[str, dict[str, Any]]:
    """Returns value and source of each rate that was measured, by the name of its field.

    Args:
        results: results of each section that has some, by its name.
        size: size that was measured.
    """
    device = results.get("environment", {}).get("device", "this machine")
    model = size.release or "a tiny model"
    return {
        name: {
            "value": results[section][key],
            "source": f"measured: saga-dist check-gpu on {device}, random weights of {model}, section {section}",
        }
        for name, (section, key) in RATE_OF.items()
        if key in results.get(section, {})
    }
