"""A checkpoint of another configuration is refused, with the keys that differ wherever they are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saga_dist.checkpoint import CheckpointInfo
from saga_dist.config import ADDED_KEYS, RunConfig, parse_config
from saga_dist.config.comparison import deciding_digest
from saga_dist.errors import CheckpointError
from saga_dist.training.resume_check import check_resumable


def config(**sections: Any) -> RunConfig:
    return parse_config({"data": {"layout": "birds", "image_size": 80}, **sections}, where="test")


def checkpoint(of: RunConfig, **extra: Any) -> CheckpointInfo:
    """A checkpoint as version 0.1.0 wrote it, with the digest only, and ``extra``."""
    saved = {"config_digest": of.digest(), "split_hash": "data", **extra}
    return CheckpointInfo(Path("run/checkpoints/step_00000001"), 1, saved, versions={})


def test_the_same_configuration_goes_on() -> None:
    check_resumable(checkpoint(config()), config(runtime={"kind": "serial"}))


def test_keys_that_differ_are_named() -> None:
    first = config(run={"seed": 2}, objective={"kl_layer": 1})
    saved = checkpoint(first, config=first.deciding())
    with pytest.raises(CheckpointError, match="another configuration: objective.kl_layer: 1 != 26; run.seed: 2 != 0;"):
        check_resumable(saved, config())


def test_a_default_that_has_changed_since_is_named() -> None:
    """Version 0.1.0 left the reduction out of its digest, and it meant the mean."""
    own = config(objective={"metric_loss": "potential_field"})
    values = {key: value for key, value in own.deciding().items() if not key.endswith(".reduction")}
    digest = deciding_digest({key: value for key, value in values.items() if key not in ADDED_KEYS})
    saved = checkpoint(own, config_digest=digest)
    named = "another configuration: objective.metric_params.reduction: 'mean' != 'per_pair'; choose"
    with pytest.raises(CheckpointError, match=named):
        check_resumable(saved, own)


def test_what_is_not_known_is_not_named() -> None:
    with pytest.raises(CheckpointError, match=r"step_00000001: it belongs to another configuration; choose a new"):
        check_resumable(checkpoint(config(run={"seed": 2})), config())
