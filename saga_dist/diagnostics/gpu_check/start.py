"""Section ``start``: what a run waits for at its start, between its phases and at a checkpoint."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from saga_dist.diagnostics.gpu_check.measuring import measured
from saga_dist.diagnostics.gpu_check.random_learner import empty_pooler, micro_batch, random_learner, take_step
from saga_dist.diagnostics.gpu_check.random_model import RandomModel, random_model
from saga_dist.models.weight_digest import checksum, hash_weights


def measure(size_name: str) -> dict[str, Any]:
    """Returns seconds and bytes of a new pooler, copies to the host, a checkpoint, and the frozen weights' digest."""
    with random_model(size_name) as model:
        pooler = measured(model.device, lambda: empty_pooler(model, seed=0).to(model.device))
        return {"pooler_s": pooler.seconds, **_learner(model), **_digest(model)}


def _learner(model: RandomModel) -> dict[str, float]:
    """Returns seconds and bytes to copy the tokens of all pairs to the host, and to save the learner's state."""
    learner = random_learner(model, model.tower())
    take_step(model, learner, 1)  # a checkpoint holds the optimizer's state too
    records = learner.encode(micro_batch(model, learner)).handles
    copies = [measured(model.device, lambda: [record.values_NW.cpu() for record in records]) for _ in range(2)][1]
    with tempfile.TemporaryDirectory(prefix="saga-check-gpu-") as folder:
        saved = measured(model.device, lambda: learner.save(Path(folder)))
        saved_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "pairs": len(copies.result),
        "copies_s": copies.seconds,
        "copies_bytes": sum(values.nbytes for values in copies.result),
        "checkpoint_s": saved.seconds,
        "checkpoint_bytes": saved_bytes,
    }


def _digest(model: RandomModel) -> dict[str, float]:
    """Returns seconds of the checksum of the frozen weights on the device, and of their sha256 on the host."""
    weights = model.backbone().state_dict()
    checked, hashed = (measured(model.device, partial(find, weights)) for find in (checksum, hash_weights))
    return {
        "weights_bytes": sum(tensor.nbytes for tensor in weights.values()),
        "checksum_s": checked.seconds,
        "digest_s": hashed.seconds,
    }
