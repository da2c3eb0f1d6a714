"""Does it fit: an estimate against what a machine has, and which settings would make it fit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from saga_dist.config import RunConfig
from saga_dist.estimate.formatting import size
from saga_dist.estimate.memory import replay_memory
from saga_dist.estimate.payloads import disk_bytes
from saga_dist.estimate.placement import Device, RoleMemory, place_actors
from saga_dist.estimate.planner import MemoryPlan, PlanInputs
from saga_dist.estimate.rates import Card

SPARE = 1.2
"""Ray's object store keeps some room for itself."""


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """What a machine has. Zero bytes of host memory, shared memory or disk: not known, not looked at."""

    gpus: int
    host: int
    """Free bytes."""
    shared: int
    """Free bytes of /dev/shm, where a local Ray's object store lies."""
    disk: int
    """Free bytes where the run directory will be."""


def machine_limits(run_dir: Path, card: Card | None) -> MachineLimits:
    """Returns the limits of this machine.

    Args:
        run_dir: need not exist yet.
        card: its GPUs, all alike; None without any.
    """
    import torch

    there = next(folder for folder in (run_dir.absolute(), *run_dir.absolute().parents) if folder.is_dir())
    meminfo, shared = Path("/proc/meminfo"), Path("/dev/shm")
    lines = meminfo.read_text("ascii").splitlines() if meminfo.exists() else []
    available = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)
    return MachineLimits(
        gpus=0 if card is None else torch.cuda.device_count(),
        host=available,
        shared=shutil.disk_usage(shared).free if shared.is_dir() else 0,
        disk=shutil.disk_usage(there).free,
    )


def starts_own_ray(config: RunConfig) -> bool:
    """Returns whether all of the run will be on this machine."""
    return config.runtime.kind == "serial" or not (config.runtime.address or os.environ.get("RAY_ADDRESS"))


def capacity_warnings(filled: MemoryPlan, limits: MachineLimits) -> Iterator[str]:
    """Yields one line for everything that has no room; what would be changed comes last in each."""
    plan_inputs = filled.plan_inputs
    config, work = plan_inputs.work.config, plan_inputs.work
    needed = sum(device.count for device in next(iter(filled.devices.values()))) if plan_inputs.card.on_gpu else 0
    if needed > limits.gpus:
        yield f"{needed} GPUs wanted, {limits.gpus} here; use a cluster, or fewer workers"
    largest = max(filled.devices)
    for device in filled.devices[largest] if plan_inputs.card.on_gpu else ():
        if not device.fits:
            yield (
                f"{_roles(device)} on one {device.name} take {size(device.used)} of {size(device.capacity)} in a step "
                f"of {largest} micro-batches (rollout.max_micro_batches); {_way_out(plan_inputs, largest)}"
            )
    if limits.host and filled.host > limits.host:
        yield (
            f"all processes take {size(filled.host)} of host memory, {size(limits.host)} are free; use fewer workers "
            "or a smaller batch"
        )
    if config.runtime.kind == "ray" and config.objective.needs_rollouts:
        yield from _object_store_warnings(filled, limits)
    left = disk_bytes(config, work.learner) + filled.payloads.recording(config, work.demand)
    if limits.disk and left > limits.disk:
        yield (
            f"checkpoints, encoder and recordings take {size(left)}, {size(limits.disk)} are free; lower "
            "checkpoint.keep, set rollout.record = false, or choose another --run-dir"
        )


def _object_store_warnings(filled: MemoryPlan, limits: MachineLimits) -> Iterator[str]:
    wanted = round(filled.payloads.store_peak * SPARE)
    store = filled.plan_inputs.work.config.runtime.object_store_mb << 20
    if wanted > store:
        yield (
            f"a step has {size(wanted)} in the object store of {size(store)}, the rest goes through the disk; set "
            f"runtime.object_store_mb = {-(-wanted >> 20)}"
        )
    if limits.shared and store > limits.shared:
        yield (
            f"runtime.object_store_mb = {store >> 20} but /dev/shm has {size(limits.shared)} free; lower it, or give "
            "the container more (--shm-size)"
        )


def fitting_overrides(plan_inputs: PlanInputs, micro_batches: int) -> tuple[str, ...]:
    """Returns overrides with which every device has room for a step of so many micro-batches: none where it has
    already, and none where nothing helps (see ``fits_with``).

    Neither of them changes what is computed: fewer completions at once in replay, layers of the tower run twice.
    """
    for change in _changes(plan_inputs):
        if fits_with(plan_inputs, micro_batches, change):
            return change
    return ()


def fits_with(plan_inputs: PlanInputs, micro_batches: int, change: tuple[str, ...] = ()) -> bool:
    """Returns whether every device has room, with some overrides of ``fitting_overrides`` applied."""
    config, memories = plan_inputs.work.config, plan_inputs.memories
    learner, replay = memories.learner, memories.replay
    for override in change:
        key, _, value = override.partition("=")
        if key == "optimizer.gradient_checkpointing":
            learner = replace(learner, checkpointing=True)
            continue
        section = config.replay.model_copy(update={"completions_per_chunk": int(value)})
        config = config.model_copy(update={"replay": section})
        smaller = replay_memory(config, plan_inputs.work.shape, plan_inputs.work.token_counts)
        learner = replace(learner, replay=smaller) if learner.replay else learner
        replay = smaller if replay else replay
    changed = RoleMemory(learner, memories.rollout, replay)
    return all(device.fits for device in place_actors(config, changed, plan_inputs.card, micro_batches))


def _changes(plan_inputs: PlanInputs) -> Iterator[tuple[str, ...]]:
    config = plan_inputs.work.config
    now = min(config.rollout.group_size, config.replay.completions_per_chunk)
    chunks = [f"replay.completions_per_chunk={now >> power}" for power in range(1, now.bit_length())]
    yield ()
    if not config.optimizer.gradient_checkpointing:
        yield ("optimizer.gradient_checkpointing=true",)
        yield from (("optimizer.gradient_checkpointing=true", chunk) for chunk in chunks)
    yield from ((chunk,) for chunk in chunks)


def _way_out(plan_inputs: PlanInputs, micro_batches: int) -> str:
    change = fitting_overrides(plan_inputs, micro_batches)
    return f"{' '.join(change)} would fit" if change else "use a card for each role, or a smaller model"


def _roles(device: Device) -> str:
    return " and ".join(dict.fromkeys(role for role, _ in device.actors))
