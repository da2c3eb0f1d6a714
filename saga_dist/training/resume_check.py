"""Checks that a run may go on from a checkpoint: it has the same deciding keys and the same data."""

from __future__ import annotations

from saga_dist.checkpoint import CheckpointInfo
from saga_dist.config import RunConfig
from saga_dist.config.comparison import differing_keys, name_keys
from saga_dist.errors import CheckpointError


def check_resumable(checkpoint: CheckpointInfo, config: RunConfig, split_hash: str) -> None:
    """Checks the configuration and the data of a checkpoint against those of the run.

    Args:
        checkpoint: the checkpoint.
        config: configuration of the run.
        split_hash: hash of the run's data.

    Raises:
        CheckpointError: they differ.
    """
    if checkpoint.extra["config_digest"] != config.digest():
        differences = _differences(checkpoint, config)
        raise CheckpointError(
            f"it belongs to another configuration{': ' if differences else ''}{name_keys(differences)}",
            where=str(checkpoint.path),
            fix="choose a new --run-dir or use the old values",
        )
    if checkpoint.extra["split_hash"] != split_hash:
        raise CheckpointError(
            "the data set has changed since this checkpoint",
            where=str(checkpoint.path),
            fix="restore the images and class lists, or choose a new --run-dir",
        )


def _differences(checkpoint: CheckpointInfo, config: RunConfig) -> list[str]:
    """Returns the keys that differ; of a checkpoint of version 0.1.0, which has a digest only, those that are known."""
    saved = checkpoint.extra.get("config")
    if saved is None:
        return config.differences_from_digest(checkpoint.extra["config_digest"])
    return differing_keys(saved, config.deciding())
