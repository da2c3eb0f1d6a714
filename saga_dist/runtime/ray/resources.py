"""Resources that the actors of a run request, compared with those that a cluster has; imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from saga_dist.config import RunConfig


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """Resources that the actors of one role request from the cluster."""

    role: str
    """Name of the role: learner, rollout or replay."""
    count: int
    """Number of actors."""
    cpus: float
    """CPUs of each actor."""
    gpus: float
    """GPUs of each actor."""
    pinned: bool = False
    """True when each actor also requests 1 of the custom resource of its role."""


def resource_requests(config: RunConfig) -> list[ResourceRequest]:
    """Returns the resource requests of all roles of a run."""
    runtime, rollout, replay = config.runtime, config.rollout, config.replay
    requests = [
        ResourceRequest("learner", runtime.learner_processes, runtime.learner_num_cpus, runtime.learner_num_gpus)
    ]
    if config.needs_engine:
        requests.append(ResourceRequest("rollout", rollout.workers, rollout.num_cpus, rollout.num_gpus))
    if config.needs_mllm:
        requests.append(ResourceRequest("replay", replay.workers, replay.num_cpus, replay.num_gpus))
    return [replace(need, pinned=runtime.pin_roles) for need in requests if need.count]


def missing_resources(requests: Sequence[ResourceRequest], resources: dict[str, float]) -> str:
    """Returns one line with the resources that the cluster lacks in total; empty when it has enough.

    Args:
        requests: request of each role (learner, rollout, replay), with its number of actors.
        resources: total resources of the cluster, as ``ray.cluster_resources`` returns them.
    """
    short = []
    for name, unit in (("CPU", "cpus"), ("GPU", "gpus")):
        parts = [(need, getattr(need, unit)) for need in requests if getattr(need, unit)]
        total, there = sum(need.count * amount for need, amount in parts), resources.get(name, 0.0)
        if total > there + 1e-6:
            detail = " + ".join(f"{need.count} {need.role} x {amount:g}" for need, amount in parts)
            short.append(f"{total:g} {name}s needed ({detail}), {there:g} there")
    for need in requests:
        there = resources.get(need.role, 0.0)
        if need.pinned and need.count > there:
            short.append(f"{need.count} of the resource {need.role!r} needed, {there:g} there")
    return "; ".join(short)
