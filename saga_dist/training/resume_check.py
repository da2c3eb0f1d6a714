"""Checks that a run may go on from a checkpoint: it has the same keys that decide the result."""

from __future__ import annotations

from saga_dist.checkpoint import CheckpointInfo
from saga_dist.config import RunConfig
from saga_dist.config.comparison import differing_keys, name_keys
from saga_dist.errors import CheckpointError


def check_resumable(checkpoint: CheckpointInfo, config: RunConfig) -> None:
    """Checks the configuration of a checkpoint against that of the run.

    Args:
        checkpoint: the checkpoint.
        config: configuration of the run.

    Raises:
        CheckpointError: they differ; the error names the keys.
    """
    if checkpoint.extra["config_digest"] != config.digest():
        differences = _differences(checkpoint, config)
        raise CheckpointError(
            f"it belongs to another configuration{': ' if differences else ''}{name_keys(differences)}",
            where=str(checkpoint.path),
            fix="choose a new --run-dir or use the old values",
        )


def _differences(checkpoint: CheckpointInfo, config: RunConfig) -> list[str]:
    """Returns the keys that differ; of a checkpoint of version 0.1.0, which has a digest only, those that are known."""
    saved = checkpoint.extra.get("config")
    if saved is None:
        return config.differences_from_digest(checkpoint.extra["config_digest"])
    return differing_keys(saved, config.deciding())
