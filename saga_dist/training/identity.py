"""Comparison of a run's weights, data and code with those that made its checkpoints and recordings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saga_dist.errors import CheckpointError
from saga_dist.protocols import Runtime
from saga_dist.utils.code_version import code_version
from saga_dist.wire import RunIdentity

log = logging.getLogger(__name__)

IDENTITY_KEY = "identity"
"""Name of the identity in a checkpoint's manifest."""
_FIX = "restore the files (or the model.revision) that the run began with, or choose a new --run-dir"


def identity_of(runtime: Runtime) -> RunIdentity:
    """Returns the identity of a run that is about to start or resume.

    Every weight is hashed where it lies, at about 1 GB/s: 16 s for an MLLM of 8 billion parameters in bfloat16.

    Args:
        runtime: open runtime, whose learner is new: its tower has its initial weights.
    """
    return RunIdentity(
        backbone=runtime.backbone_digest(),
        tower=runtime.learner.tower_digest(),
        split=runtime.learner.split_hash(),
        code=code_version(),
    )


def refuse_other_identity(present: RunIdentity, extra: Mapping[str, Any], *, where: Path) -> None:
    """Checks that a checkpoint was made with the weights and data of this run; warns of another version of the code.

    Args:
        present: identity of this attempt.
        extra: data in the checkpoint's manifest; those of earlier versions hold the digest of the split only.
        where: folder of the checkpoint.

    Raises:
        CheckpointError: weights or data differ; the error names which.
    """
    if extra["split_hash"] != present.split:
        raise CheckpointError(
            "the data set has changed since this checkpoint",
            where=str(where),
            fix="restore the images and class lists, or choose a new --run-dir",
        )
    saved = RunIdentity.from_json(extra.get(IDENTITY_KEY))
    if saved is None:
        return
    if different := present.differences(saved):
        raise CheckpointError(f"{different[0]} have changed since this checkpoint", where=str(where), fix=_FIX)
    if saved.code != present.code:
        log.warning(
            "%s was written by saga_dist %s, this is %s; to repeat a run bit for bit, finish it with the version that "
            "began it",
            where,
            saved.code,
            present.code,
        )


def refuse_other_recording(present: RunIdentity, recorded: RunIdentity | None, *, where: Path) -> None:
    """Checks that recordings to which more are added were made with the weights and data of this run.

    Args:
        present: identity of this attempt.
        recorded: identity of an earlier recording; None where it has none.
        where: the recording.

    Raises:
        CheckpointError: weights or data differ; the error names which.
    """
    if recorded is not None and (different := present.differences(recorded)):
        raise CheckpointError(f"{different[0]} have changed since this recording", where=str(where), fix=_FIX)
