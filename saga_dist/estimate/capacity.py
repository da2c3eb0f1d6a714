"""Compares an estimate with the resources of a machine, and finds settings with which the run would fit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from saga_dist.config import RunConfig
from saga_dist.errors import ConfigError
from saga_dist.estimate.formatting import size
from saga_dist.estimate.memory import replay_memory
from saga_dist.estimate.payloads import disk_bytes
from saga_dist.estimate.placement import DeviceUsage, RoleMemory, assign_devices, engine_size
from saga_dist.estimate.planner import MemoryPlan, PlanInputs
from saga_dist.estimate.rates import Card
from saga_dist.runtime.validation.facts import joins_cluster

OBJECT_STORE_MARGIN = 1.2
"""Recommended size of the object store over the bytes of a step: Ray uses part of the store itself."""


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """Free resources of a machine. Host memory, shared memory or disk of 0 bytes is unknown and not checked."""

    gpus: int
    """Number of GPUs."""
    host: int
    """Free bytes of host memory."""
    shm: int
    """Free bytes of /dev/shm, which holds the object store of a local Ray."""
    disk: int
    """Free bytes of the file system of the run directory."""


def machine_limits(run_dir: Path, card: Card | None) -> MachineLimits:
    """Returns the free resources of this machine.

    Args:
        run_dir: run directory; need not exist yet.
        card: the machine's GPUs, all alike; None without GPUs.
    """
    import torch

    existing = next(folder for folder in (run_dir.absolute(), *run_dir.absolute().parents) if folder.is_dir())
    meminfo, shm = Path("/proc/meminfo"), Path("/dev/shm")
    lines = meminfo.read_text("ascii").splitlines() if meminfo.exists() else []
    available = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)
    return MachineLimits(
        gpus=0 if card is None else torch.cuda.device_count(),
        host=available,
        shm=shutil.disk_usage(shm).free if shm.is_dir() else 0,
        disk=shutil.disk_usage(existing).free,
    )


def runs_on_this_machine(config: RunConfig) -> bool:
    """Returns True when all processes of the run will be on this machine: serial runtime, or a Ray started for it."""
    return not joins_cluster(config)


def capacity_warnings(memory: MemoryPlan, limits: MachineLimits) -> Iterator[str]:
    """Yields one line for each resource that is too small; the line ends with the change to make."""
    plan_inputs = memory.plan_inputs
    config, work = plan_inputs.work.config, plan_inputs.work
    needed = sum(device.count for device in next(iter(memory.devices.values()))) if plan_inputs.card.on_gpu else 0
    if needed > limits.gpus:
        yield f"{needed} GPUs wanted, {limits.gpus} here; use a cluster, or fewer workers"
    largest = max(memory.devices)
    for device in memory.devices[largest] if plan_inputs.card.on_gpu else ():
        if not device.fits:
            yield (
                f"{_roles(device)} on one {device.name} take {size(device.used)} of {size(device.capacity)} in a step "
                f"of {largest} micro-batches (rollout.max_micro_batches); {_remedy(plan_inputs, largest)}"
            )
    yield from _engine_warnings(plan_inputs)
    if limits.host and memory.host > limits.host:
        yield (
            f"all processes take {size(memory.host)} of host memory, {size(limits.host)} are free; use fewer workers "
            "or a smaller batch"
        )
    if config.runtime.kind == "ray" and config.objective.needs_mllm:
        yield from _object_store_warnings(memory, limits)
    written = disk_bytes(config, work.learner) + memory.payloads.recording(config, work.dynamic_sampling)
    if limits.disk and written > limits.disk:
        yield (
            f"checkpoints, encoder and recordings take {size(written)}, {size(limits.disk)} are free; lower "
            "checkpoint.keep, set rollout.record = false, or choose another --run-dir"
        )


def _engine_warnings(plan_inputs: PlanInputs) -> Iterator[str]:
    """Yields a line when vLLM would not start, because its share of a GPU has no room for its KV cache."""
    config, rollout, card = plan_inputs.work.config, plan_inputs.memories.rollout, plan_inputs.card
    if rollout is None or not card.on_gpu or config.rollout.engine != "vllm":
        return
    share, shards = config.rollout.gpu_memory_utilization, config.rollout.tensor_parallel_size
    try:
        engine_size(config, rollout).on_gpu(memory=int(card.memory), share=share, shards=shards)
    except ConfigError as error:
        yield str(error)


def _object_store_warnings(memory: MemoryPlan, limits: MachineLimits) -> Iterator[str]:
    wanted = round(memory.payloads.store_peak * OBJECT_STORE_MARGIN)
    store = memory.plan_inputs.work.config.runtime.object_store_mb << 20
    if wanted > store:
        yield (
            f"a step has {size(wanted)} in the object store of {size(store)}, the rest is spilled to disk; set "
            f"runtime.object_store_mb = {-(-wanted >> 20)}"
        )
    if limits.shm and store > limits.shm:
        yield (
            f"runtime.object_store_mb = {store >> 20} but /dev/shm has {size(limits.shm)} free; lower it, or give "
            "the container more (--shm-size)"
        )


def fitting_overrides(plan_inputs: PlanInputs, micro_batches: int) -> tuple[str, ...]:
    """Returns overrides with which every device can hold its actors in a step of ``micro_batches`` micro-batches.

    The result is empty when no override is needed, and also when none helps; ``fits_with`` tells the two apart. The
    overrides do not change the gradients: gradient checkpointing of the tower, and fewer completions per replay chunk.
    """
    for change in _changes(plan_inputs):
        if fits_with(plan_inputs, micro_batches, change):
            return change
    return ()


def fits_with(plan_inputs: PlanInputs, micro_batches: int, change: tuple[str, ...] = ()) -> bool:
    """Returns True when every device can hold its actors.

    Args:
        plan_inputs: the configuration on a kind of device.
        micro_batches: micro-batches of the step.
        change: overrides to apply first, of the kinds that ``fitting_overrides`` returns.
    """
    config, memories = plan_inputs.work.config, plan_inputs.memories
    learner, replay = memories.learner, memories.replay
    for override in change:
        key, _, value = override.partition("=")
        if key == "optimizer.gradient_checkpointing":
            learner = replace(learner, checkpointing=True)
            continue
        section = config.replay.model_copy(update={"completions_per_chunk": int(value)})
        config = config.model_copy(update={"replay": section})
        work, on_gpu = plan_inputs.work, plan_inputs.card.on_gpu
        reduced = replay_memory(config, work.shape, work.token_counts, on_gpu=on_gpu)
        learner = replace(learner, replay=reduced) if learner.replay else learner
        replay = reduced if replay else replay
    changed = RoleMemory(learner, memories.rollout, replay)
    return all(device.fits for device in assign_devices(config, changed, plan_inputs.card, micro_batches))


def _changes(plan_inputs: PlanInputs) -> Iterator[tuple[str, ...]]:
    """Yields sets of overrides in the order in which they are tried: none, checkpointing, both, smaller chunks."""
    config = plan_inputs.work.config
    now = config.completions_at_once
    chunks = [f"replay.completions_per_chunk={now >> power}" for power in range(1, now.bit_length())]
    yield ()
    if not config.optimizer.gradient_checkpointing:
        yield ("optimizer.gradient_checkpointing=true",)
        yield from (("optimizer.gradient_checkpointing=true", chunk) for chunk in chunks)
    yield from ((chunk,) for chunk in chunks)


def _remedy(plan_inputs: PlanInputs, micro_batches: int) -> str:
    change = fitting_overrides(plan_inputs, micro_batches)
    return f"{' '.join(change)} would fit" if change else "use a card for each role, or a smaller model"


def _roles(device: DeviceUsage) -> str:
    return " and ".join(dict.fromkeys(role for role, _ in device.actors))
