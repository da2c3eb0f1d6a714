"""Ray's table of actors: the process of each, and the resources that actors without one wait for.

Ray has no public function for it without a dashboard, so only this module reads it from ``ray._private.state``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray._private import state

from saga_dist.runtime.ray.resources import ResourceRequest, shortage_text

ROLE_OF_CLASS = {"LearnerActor": "learner", "RankActor": "learner", "RolloutActor": "rollout", "ReplayActor": "replay"}
"""Role by the name of the actor's class."""


@dataclass(frozen=True, slots=True)
class ActorProcess:
    """Process of an actor."""

    pid: int
    """Process id on its node."""
    node_id: str
    """Ray's id of the node."""


def process_of(actor: Any) -> ActorProcess | None:
    """Returns the process of an actor; None while Ray has none for it, or when it has ended."""
    row = state.actors(actor._actor_id.hex())
    if not row or not row["Pid"] or row["State"] == "DEAD":
        return None
    return ActorProcess(row["Pid"], row["Address"]["NodeID"])


def nodes_of_role(role: str) -> set[str]:
    """Returns the ids of the nodes on which this job's actors of a role run."""
    return {
        row["Address"]["NodeID"]
        for row in _rows_of_this_job()
        if ROLE_OF_CLASS.get(row["ActorClassName"]) == role and row["State"] == "ALIVE"
    }


def unplaced_roles() -> Counter[str]:
    """Returns the number of this job's actors by role for which Ray has found no node yet."""
    waiting = ("DEPENDENCIES_UNREADY", "PENDING_CREATION")
    pending = (row for row in _rows_of_this_job() if row["State"] in waiting and not row["Pid"])
    return Counter(role for row in pending if (role := ROLE_OF_CLASS.get(row["ActorClassName"])))


def shortage(requests: Sequence[ResourceRequest]) -> str:
    """Returns one line on what this job's actors without a node wait for; empty when every actor has a node.

    Args:
        requests: request of each role.
    """
    unplaced = unplaced_roles()
    waiting = [replace(need, count=unplaced[need.role]) for need in requests if unplaced[need.role]]
    if not waiting:
        return ""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return shortage_text(waiting, total=ray.cluster_resources(), free=ray.available_resources(), nodes=nodes)


def _rows_of_this_job() -> Iterable[Mapping[str, Any]]:
    """Returns Ray's rows of all actors of this job."""
    return state.actors(job_id=ray.JobID.from_hex(ray.get_runtime_context().get_job_id())).values()
