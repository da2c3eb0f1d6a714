"""Section ``precision``: packed against padded attention on a few layers, two programs for the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from saga_dist.diagnostics.gpu_check.random_model import random_model
from saga_dist.diagnostics.gpu_check.replay import padded
from saga_dist.diagnostics.gpu_check.skipping import SectionSkipped


def measure(size_name: str) -> dict[str, Any]:
    """Returns the differences of token gradients and log-probabilities between the two programs, both in bfloat16.

    Raises:
        SectionSkipped: the device has no kernel of packed attention.
    """
    with random_model(size_name) as model:
        backbone = model.backbone(layers=model.size.precision_layers)
        if not backbone.supports_packing:
            raise SectionSkipped("no kernel of packed attention for this device")
        worker, tokens = model.replay_worker(backbone), model.tokens()
        task = model.task(tokens)
        packed = worker.replay(task, tokens)
        with padded(backbone):
            other = worker.replay(task, tokens)
        error = (packed.values_NW - other.values_NW).norm() / other.values_NW.norm()
        differences_R = np.concatenate(packed.mismatch.replayed) - np.concatenate(other.mismatch.replayed)
        return {"layers": backbone.num_layers, "gradient_error": error.item(), **log_prob_statistics(differences_R)}


def log_prob_statistics(differences_R: np.ndarray) -> dict[str, float]:
    """Returns mean, median and maximum of |difference| in nats, and the estimate of the KL divergence.

    Args:
        differences_R: [R] log-probabilities of one program minus those of the other, for the same tokens.
    """
    differences_R = differences_R.astype(np.float64)
    absolute_R = np.abs(differences_R)
    return {
        "log_prob_mean": float(absolute_R.mean()),
        "log_prob_median": float(np.median(absolute_R)),
        "log_prob_max": float(absolute_R.max()),
        "log_prob_kl": float((np.expm1(differences_R) - differences_R).mean()),
    }
