"""The actors of a learner and their client have every method of the protocol, so that no call fails in mid-run."""

from __future__ import annotations

import pytest

from saga_dist.protocols import Learner
from saga_dist.runtime.ray.actors import LearnerActor
from saga_dist.runtime.ray.fake_workers import FakeLearner
from saga_dist.runtime.ray.learner_group import LearnerGroupActor, RankActor
from saga_dist.runtime.ray.remote_learner import RemoteLearner

METHODS = {name for name in vars(Learner) if not name.startswith("_")}


@pytest.mark.parametrize("kind", [LearnerActor, RankActor, LearnerGroupActor, RemoteLearner, FakeLearner])
def test_it_has_every_method_of_the_protocol(kind: type) -> None:
    assert {"encode", "training_images"} <= METHODS
    assert {name for name in METHODS if not hasattr(kind, name)} == set()
