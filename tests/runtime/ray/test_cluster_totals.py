"""The resources of a running cluster, asked without joining it."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from saga_dist.runtime.ray.cluster_totals import cluster_totals

pytestmark = pytest.mark.cluster


def test_totals_are_those_of_the_cluster(ray_cluster: Any) -> None:
    found = cluster_totals(ray.get_runtime_context().gcs_address)
    assert found is not None
    assert found["CPU"] == ray.cluster_resources()["CPU"]
    assert found == ray.cluster_resources()
