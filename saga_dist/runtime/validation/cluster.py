"""Check of the cluster that a run joins: whether it has the resources that the actors request."""

from __future__ import annotations

from saga_dist.runtime.ray.resources import missing_resources, resource_requests
from saga_dist.runtime.validation.facts import RunFacts, cluster_address


def check_cluster(run: RunFacts) -> str:
    """Returns a warning when the cluster has too few CPUs, GPUs or custom resources: it may grow while the run waits.

    A cluster that does not answer at once is not checked.
    """
    address = cluster_address(run.config)
    if not address:
        return ""
    from saga_dist.runtime.ray.cluster_totals import cluster_totals  # imports Ray

    totals = cluster_totals(address)
    missing = "" if totals is None else missing_resources(resource_requests(run.config), totals)
    return f"the cluster at {address} is too small, and the run will wait until it grows: {missing}" if missing else ""
