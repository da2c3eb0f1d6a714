"""Check of the cluster that a run joins: whether it has the resources that the actors request."""

from __future__ import annotations

from functools import lru_cache

from saga_dist.runtime.ray.resources import missing_resources, resource_requests
from saga_dist.runtime.validation.facts import RunFacts, cluster_address


def check_cluster(run: RunFacts) -> str:
    """Returns a warning when the cluster has too few CPUs, GPUs or custom resources: it may grow while the run waits.

    A cluster that does not answer at once is not checked.
    """
    address = cluster_address(run.config)
    if not address:
        return ""
    totals = _totals(address)
    missing = "" if totals is None else missing_resources(resource_requests(run.config), totals)
    return f"the cluster at {address} is too small, and the run will wait until it grows: {missing}" if missing else ""


@lru_cache(maxsize=4)
def _totals(address: str) -> dict[str, float] | None:
    """Returns ``cluster_totals`` of a cluster, asked once a process: a sweep validates each of its cells."""
    from saga_dist.runtime.ray import cluster_totals  # imports Ray

    return cluster_totals.cluster_totals(address)
