"""Resources that the actors of a run request, compared with those that a cluster has in total and free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    @property
    def of_one(self) -> dict[str, float]:
        """Amount that one actor requests, by name of the resource; without zeros."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, self.role: float(self.pinned)}
        return {name: amount for name, amount in amounts.items() if amount}


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


def missing_resources(
    requests: Sequence[ResourceRequest], total: Mapping[str, float], free: Mapping[str, float] | None = None
) -> str:
    """Returns one line with the resources that a cluster lacks; empty when it has enough.

    Args:
        requests: request of each role (learner, rollout, replay), with its number of actors.
        total: total resources of the cluster, as ``ray.cluster_resources`` returns them.
        free: resources that nobody uses, as ``ray.available_resources`` returns them; None to compare with the total.
    """
    usable = total if free is None else free
    short = []
    for name in ("CPU", "GPU"):
        parts = [(need, need.of_one[name]) for need in requests if name in need.of_one]
        needed = sum(need.count * amount for need, amount in parts)
        if needed > usable.get(name, 0.0) + 1e-6:
            detail = " + ".join(f"{need.count} {need.role} x {amount:g}" for need, amount in parts)
            short.append(f"{needed:g} {name}s needed ({detail}), {_there(name, total, free)}")
    short += [
        f"{need.count} of the resource {need.role!r} needed, {_there(need.role, total, free)}"
        for need in requests
        if need.pinned and need.count > usable.get(need.role, 0.0)
    ]
    return "; ".join(short)


def shortage_text(
    waiting: Sequence[ResourceRequest],
    *,
    total: Mapping[str, float],
    free: Mapping[str, float],
    nodes: Sequence[Mapping[str, float]],
) -> str:
    """Returns one line on what actors that Ray has placed on no node are waiting for; never empty.

    Args:
        waiting: request of each role, with its number of waiting actors.
        total: total resources of the cluster.
        free: resources that nobody uses.
        nodes: total resources of each node.
    """
    if text := missing_resources(waiting, total, free):
        return text
    for need in waiting:
        if not any(all(node.get(name, 0.0) >= amount for name, amount in need.of_one.items()) for node in nodes):
            amounts = " and ".join(f"{amount:g} {name}s" for name, amount in need.of_one.items())
            return f"no single node has {amounts} for a {need.role} actor"
    names = " and ".join(f"{need.count} {need.role}" for need in waiting)
    return f"Ray has not placed {names} yet: enough is free in total, but perhaps not on one node"


def _there(name: str, total: Mapping[str, float], free: Mapping[str, float] | None) -> str:
    there = f"{total.get(name, 0.0):g} there"
    return there if free is None else f"{there}, {free.get(name, 0.0):g} free"
