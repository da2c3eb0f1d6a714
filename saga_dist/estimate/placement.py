"""Which actors share which device, how full that makes it, and what fits at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saga_dist.config import RunConfig
from saga_dist.estimate.memory import LearnerMemory, ReplayMemory, RolloutMemory
from saga_dist.estimate.rates import GIB, Card
from saga_dist.estimate.sampling import SamplingDemand
from saga_dist.workers.engines.vllm_engine import CPU_KV_CACHE_LIMIT

CONTEXT_BYTES = GIB
"""Of a process on a GPU: CUDA, cuBLAS workspaces. An assumption."""
PROCESS_BYTES = GIB
"""Of a process on the host: Python, torch, transformers, vLLM, Ray. Between 0.6 and 1.3 GB on the machine this was
written on."""
GPU_PROCESS_BYTES = 3 * GIB
"""The same where there is a GPU: CUDA's libraries too. An assumption."""
SLACK = 1.05
"""For what the allocator cannot use, and temporaries of single operations. An assumption."""
ENGINE_WORK_BYTES = 2 * GIB
"""Of vLLM on a GPU besides weights and cache: activations of a prefill, captured graphs. An assumption."""


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """Bytes by role."""

    learner: LearnerMemory
    rollout: RolloutMemory | None
    replay: ReplayMemory | None
    """Of workers of their own."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device, or several alike."""

    name: str
    count: int
    actors: tuple[tuple[str, int], ...]
    """Role and bytes of every actor on it."""
    capacity: float

    @property
    def used(self) -> int:
        """Bytes of all actors."""
        return sum(taken for _, taken in self.actors)

    @property
    def share(self) -> float:
        """Of the device's memory."""
        return self.used / self.capacity

    @property
    def fits(self) -> bool:
        """True when everything has room."""
        return self.used <= self.capacity


def place_actors(config: RunConfig, memories: RoleMemory, card: Card, micro_batches: float) -> list[Device]:
    """Returns every device with what is on it.

    Args:
        config: says which actor asks for how much of a GPU.
        memories: bytes by role.
        card: the device; a processor holds everything.
        micro_batches: of the step that is looked at.
    """
    runtime, rollout, replay = config.runtime, config.rollout, config.replay
    actors: list[tuple[str, float, int]] = []
    learner = _learner_bytes(memories.learner, micro_batches, on_gpu=card.on_gpu)
    actors += [("learner", runtime.learner_num_gpus, learner)] * runtime.learner_processes
    if memories.rollout is not None:
        taken = engine_bytes(config, memories.rollout, card)
        actors += [("rollout", rollout.num_gpus, taken)] * rollout.workers
    if memories.replay is not None:
        actors += [("replay", replay.num_gpus, _replay_bytes(memories.replay, card))] * replay.workers
    if not card.on_gpu or runtime.kind == "serial" or not any(gpus for _, gpus, _ in actors):
        one = card.name.partition(" on ")[0]
        return [Device(one, 1, tuple((role, taken) for role, _, taken in actors), card.memory)]
    return _packed(actors, card)


def _packed(actors: Sequence[tuple[str, float, int]], card: Card) -> list[Device]:
    """Whole cards for who asks for whole ones; fractions share, the largest first, as Ray places them."""
    devices: list[Device] = []
    for role in dict.fromkeys(role for role, gpus, _ in actors if gpus >= 1):
        alike = [(gpus, taken) for name, gpus, taken in actors if name == role and gpus >= 1]
        count, taken = sum(int(gpus) for gpus, _ in alike), alike[0][1]
        devices.append(Device(card.name, count, ((role, taken // int(alike[0][0])),), card.memory))
    shared: list[tuple[float, list[tuple[str, int]]]] = []
    for role, gpus, taken in sorted((one for one in actors if one[1] < 1), key=lambda one: -one[1]):
        for index, (room, inside) in enumerate(shared):
            if gpus <= room + 1e-6:
                shared[index] = (room - gpus, [*inside, (role, taken)])
                break
        else:
            shared.append((1.0 - gpus, [(role, taken)]))
    return [*devices, *(Device(card.name, 1, tuple(inside), card.memory) for _, inside in shared)]


def _learner_bytes(learner: LearnerMemory, micro_batches: float, *, on_gpu: bool) -> int:
    return round(learner.peak(micro_batches) * SLACK) + (CONTEXT_BYTES if on_gpu else PROCESS_BYTES)


def _replay_bytes(replay: ReplayMemory, card: Card) -> int:
    return round((replay.weights + replay.work) * SLACK) + (CONTEXT_BYTES if card.on_gpu else PROCESS_BYTES)


def engine_bytes(config: RunConfig, rollout: RolloutMemory, card: Card) -> int:
    """Returns the bytes that one rollout worker takes.

    vLLM takes the share of the GPU that it is given, weights and KV cache in it. Of every other engine it is assumed
    that it takes what the transformers engine does: weights, and the KV cache that its sequences fill.
    """
    settings = config.rollout
    if card.on_gpu and settings.engine == "vllm":
        return round(settings.gpu_memory_utilization * card.memory * settings.tensor_parallel_size)
    if settings.engine == "vllm":
        return rollout.weights + processor_cache_bytes(config, rollout) + PROCESS_BYTES
    base = CONTEXT_BYTES if card.on_gpu else PROCESS_BYTES
    return round((rollout.weights + rollout.wanted_cache) * SLACK) + base


def processor_cache_bytes(config: RunConfig, rollout: RolloutMemory) -> int:
    """Returns the cache that vLLM gets without a GPU: full contexts for all sequences, within limits."""
    wanted = config.rollout.max_sequences * config.rollout.max_model_len * rollout.token_bytes
    return min(max(wanted, 64 << 20), CPU_KV_CACHE_LIMIT)


def cache_tokens(config: RunConfig, rollout: RolloutMemory, card: Card) -> int:
    """Returns the tokens that the engine's cache holds: negative where not even the weights have room."""
    settings = config.rollout
    if not card.on_gpu:
        return processor_cache_bytes(config, rollout) // rollout.token_bytes
    room = engine_bytes(config, rollout, card) - settings.tensor_parallel_size * ENGINE_WORK_BYTES
    return int(room - rollout.weights) // rollout.token_bytes


def max_groups(config: RunConfig, memories: RoleMemory, card: Card, demand: SamplingDemand) -> int:
    """Returns the largest K that the learner's device has room for: K decides how many micro-batches stay open.

    Replay works on one group at a time and on ``completions_per_chunk`` of its completions, so that neither K nor G
    beyond that takes memory there.
    """
    batches = 0
    while batches < 1024 and all(device.fits for device in place_actors(config, memories, card, batches + 1)):
        batches += 1
    return int(batches * config.rollout.pairs_per_batch * demand.contributing_share)


def serial_bytes(config: RunConfig, memories: RoleMemory, micro_batches: int) -> int:
    """Returns the host memory of one process that holds every role, without a GPU.

    The replay worker is one of its own there, wherever the configuration has it.
    """
    parts = memories.learner.peak(micro_batches)
    if memories.replay is not None:
        parts += memories.replay.weights + memories.replay.work
    if memories.rollout is not None:
        cache = processor_cache_bytes(config, memories.rollout) if config.rollout.engine == "vllm" else 0
        parts += memories.rollout.weights + cache
    return round(parts * SLACK) + PROCESS_BYTES


def host_bytes(config: RunConfig, memories: RoleMemory, card: Card, store: int) -> int:
    """Returns the host memory of all processes together, the object store included.

    Args:
        config: how many processes.
        memories: bytes by role.
        card: where tensors live; without a GPU all of them are in host memory.
        store: bytes in the object store.
    """
    if not card.on_gpu and config.runtime.kind == "serial":
        return serial_bytes(config, memories, 1)
    if not card.on_gpu:
        on_devices = sum(device.used for device in place_actors(config, memories, card, 1))
        return on_devices + PROCESS_BYTES + store  # the coordinator is one more
    processes = 1 + config.runtime.learner_processes
    processes += config.rollout.workers if memories.rollout is not None else 0
    processes += config.replay.workers if memories.replay is not None else 0
    # A checkpoint is copied to the host before it is written: the larger of its two files at a time.
    copy = max(memories.learner.weights, memories.learner.optimizer)
    spread = memories.replay.weights if memories.replay is not None and config.replay.num_gpus >= 2 else 0
    return processes * GPU_PROCESS_BYTES + copy + spread + store
