"""Settings of the pools of scripted workers that several files share, because processes are dear."""

from __future__ import annotations

from typing import Any, Literal

from saga_dist.protocols import WorkerPool
from saga_dist.runtime.ray.adapter import PoolConfig, Timeouts
from saga_dist.runtime.ray.pool import RayPool
from saga_dist.types import RolloutTask, ScoredGroup

GENEROUS = PoolConfig(
    workers=2, tasks_per_lease=16, max_attempts=3, timeouts=Timeouts(start_s=150, lease_s=60, heartbeat_s=20)
)

Pool = WorkerPool[RolloutTask, ScoredGroup]
OnRay = RayPool[RolloutTask, ScoredGroup]


def set_config(pool: OnRay, config: PoolConfig) -> None:
    """Other numbers for running workers."""
    pool._config = pool._group._config = config
    for slot in pool._group._slots:
        slot._timeouts = config.timeouts
    pool._state.queue._max_quarantined = config.max_quarantined


def actors(pool: OnRay) -> list[Any]:
    return [slot.actor for slot in pool._group._slots]


Mode = Literal["fed", "whole"]
"""Whether workers return groups one by one and take others meanwhile, or work on one lease after the other."""
