"""Placement of actors on devices, the memory that each device then uses, and the largest K that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saga_dist.config import RunConfig
from saga_dist.data.batch_reader import MAX_BATCHES
from saga_dist.estimate.memory import LearnerMemory, ReplayMemory, RolloutMemory
from saga_dist.estimate.rates import GIB, Card
from saga_dist.estimate.sampling import DynamicSampling
from saga_dist.workers.engines.vllm_arguments import GPU_WORK_BYTES, EngineSize

CUDA_CONTEXT_BYTES = GIB
"""GPU memory of a process besides tensors: CUDA context, cuBLAS workspaces. An assumption."""
PROCESS_BYTES = GIB
"""Host memory of a process besides tensors: Python, torch, transformers, vLLM, Ray. Measured on one machine: 0.6 to 1.3
GB."""
GPU_PROCESS_BYTES = 3 * GIB
"""Host memory of a process that uses a GPU, with CUDA's libraries. An assumption."""
SLACK = 1.05
"""Factor for fragmentation of the allocator and for temporaries of single operations. An assumption."""


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """Memory of one process of each role."""

    learner: LearnerMemory
    """Memory of a learner process."""
    rollout: RolloutMemory | None
    """Memory of a rollout worker; None when the run has no engine."""
    replay: ReplayMemory | None
    """Memory of a replay worker; None when replay runs in the learner's process, or the run needs no MLLM."""


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """Memory use of a device, or of several devices with the same actors."""

    name: str
    """Name of the card."""
    count: int
    """Number of such devices."""
    actors: tuple[tuple[str, int], ...]
    """Role and bytes of each actor on the device."""
    capacity: float
    """Bytes of the device."""

    @property
    def used(self) -> int:
        """Bytes of all actors together."""
        return sum(taken for _, taken in self.actors)

    @property
    def utilization(self) -> float:
        """Used share of the device's memory; above 1 when the actors do not fit."""
        return self.used / self.capacity

    @property
    def fits(self) -> bool:
        """True when the device can hold all its actors."""
        return self.used <= self.capacity


def assign_devices(config: RunConfig, memories: RoleMemory, card: Card, micro_batches: float) -> list[DeviceUsage]:
    """Returns the devices of a run, each with its actors.

    Args:
        config: configuration of the run, with the GPU share that each actor requests.
        memories: memory of each role.
        card: kind of device. A CPU holds all actors, and so does one GPU for a serial run or without GPU requests.
        micro_batches: micro-batches of the step.
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
        name = card.name.partition(" on ")[0]
        return [DeviceUsage(name, 1, tuple((role, taken) for role, _, taken in actors), card.memory)]
    return _pack(actors, card)


def _pack(actors: Sequence[tuple[str, float, int]], card: Card) -> list[DeviceUsage]:
    """Returns the cards that actors (role, requested GPUs, bytes) are placed on, in the way Ray places them.

    An actor that requests whole GPUs gets cards of its own, and its bytes are divided evenly among them. Actors that
    request a fraction share cards, the largest fraction first.
    """
    devices: list[DeviceUsage] = []
    for role in dict.fromkeys(role for role, gpus, _ in actors if gpus >= 1):
        whole = [(gpus, taken) for name, gpus, taken in actors if name == role and gpus >= 1]
        count, taken = sum(int(gpus) for gpus, _ in whole), whole[0][1]
        devices.append(DeviceUsage(card.name, count, ((role, taken // int(whole[0][0])),), card.memory))
    shared: list[tuple[float, list[tuple[str, int]]]] = []  # free fraction and actors of each shared card
    for role, gpus, taken in sorted((actor for actor in actors if actor[1] < 1), key=lambda actor: -actor[1]):
        for index, (free, placed) in enumerate(shared):
            if gpus <= free + 1e-6:
                shared[index] = (free - gpus, [*placed, (role, taken)])
                break
        else:
            shared.append((1.0 - gpus, [(role, taken)]))
    return [*devices, *(DeviceUsage(card.name, 1, tuple(placed), card.memory) for _, placed in shared)]


def _learner_bytes(learner: LearnerMemory, micro_batches: float, *, on_gpu: bool) -> int:
    return round(learner.peak(micro_batches) * SLACK) + (CUDA_CONTEXT_BYTES if on_gpu else PROCESS_BYTES)


def _replay_bytes(replay: ReplayMemory, card: Card) -> int:
    return round((replay.weights + replay.working_set) * SLACK) + (CUDA_CONTEXT_BYTES if card.on_gpu else PROCESS_BYTES)


def engine_bytes(config: RunConfig, rollout: RolloutMemory, card: Card) -> int:
    """Returns the bytes that one rollout worker allocates.

    vLLM on a GPU allocates what its weights, working memory and KV cache take, at most
    ``rollout.gpu_memory_utilization`` of it; the rest is its neighbours'. Every other engine is assumed to allocate
    what the transformers engine does: weights, and the KV cache that its sequences fill.
    """
    settings = config.rollout
    if card.on_gpu and settings.engine == "vllm":
        shards, size = settings.tensor_parallel_size, engine_size(config, rollout)
        share = round(settings.gpu_memory_utilization * card.memory)
        return shards * min(share, size.gpu_bytes(-(-size.wanted // shards), shards))
    if settings.engine == "vllm":
        return rollout.weights + cpu_kv_cache_bytes(config, rollout) + PROCESS_BYTES
    base = CUDA_CONTEXT_BYTES if card.on_gpu else PROCESS_BYTES
    return round((rollout.weights + rollout.kv_cache_bytes) * SLACK) + base


def engine_size(config: RunConfig, rollout: RolloutMemory) -> EngineSize:
    """Returns the sizes from which vLLM's memory is computed."""
    context, sequences = config.rollout.max_model_len, config.rollout.max_sequences
    return EngineSize(rollout.weights, rollout.kv_token_bytes, context, sequences)


def cpu_kv_cache_bytes(config: RunConfig, rollout: RolloutMemory) -> int:
    """Returns the bytes of vLLM's KV cache on a CPU."""
    return engine_size(config, rollout).on_cpu()


def kv_cache_capacity(config: RunConfig, rollout: RolloutMemory, card: Card) -> int:
    """Returns the number of tokens that the engine's KV cache can hold; negative when not even the weights fit."""
    settings = config.rollout
    if not card.on_gpu:
        return cpu_kv_cache_bytes(config, rollout) // rollout.kv_token_bytes
    usable = engine_bytes(config, rollout, card) - settings.tensor_parallel_size * GPU_WORK_BYTES
    return int(usable - rollout.weights) // rollout.kv_token_bytes


def max_groups(config: RunConfig, memories: RoleMemory, card: Card, sampling: DynamicSampling) -> int:
    """Returns the largest K (contributing groups per step) with which every device can hold its actors.

    K determines how many micro-batches the learner holds until the step ends. Replay processes one group at a time, and
    ``completions_per_chunk`` of its completions, so its memory does not depend on K, nor on G beyond that.
    """
    batches = 0
    while batches < 1024 and all(device.fits for device in assign_devices(config, memories, card, batches + 1)):
        batches += 1
    return int(batches * config.rollout.pairs_per_batch * sampling.contributing_share)


def serial_bytes(config: RunConfig, memories: RoleMemory, micro_batches: int) -> int:
    """Returns the host memory of one process that runs every role on the CPU.

    Args:
        config: configuration of the run.
        memories: memory of each role. Where the configuration has replay workers, the process holds one besides the
            learner.
        micro_batches: micro-batches of the step.
    """
    total = memories.learner.peak(micro_batches)
    if memories.replay is not None:
        total += memories.replay.weights + memories.replay.working_set
    if memories.rollout is not None:
        cache = cpu_kv_cache_bytes(config, memories.rollout) if config.rollout.engine == "vllm" else 0
        total += memories.rollout.weights + cache
    return round(total * SLACK) + PROCESS_BYTES


def host_bytes(config: RunConfig, memories: RoleMemory, card: Card, store: int) -> int:
    """Returns the host memory of all processes together, the object store included.

    Args:
        config: configuration of the run, with the number of processes.
        memories: memory of each role.
        card: kind of device; without a GPU all tensors are in host memory.
        store: bytes in the object store.
    """
    if not card.on_gpu and config.runtime.kind == "serial":
        return serial_bytes(config, memories, 1)
    if not card.on_gpu:
        on_devices = sum(device.used for device in assign_devices(config, memories, card, 1))
        return on_devices + PROCESS_BYTES + store  # PROCESS_BYTES: the coordinator's process
    processes = 1 + config.runtime.learner_processes
    processes += config.rollout.workers if memories.rollout is not None else 0
    processes += config.replay.workers if memories.replay is not None else 0
    # A checkpoint is copied to the host before it is written, one of its two files at a time.
    checkpoint_copy = max(memories.learner.trained_weights, memories.learner.optimizer)
    # A backbone that is spread over several GPUs is loaded on the host first.
    loading = memories.replay.weights if memories.replay is not None and config.replay.num_gpus >= 2 else 0
    return processes * GPU_PROCESS_BYTES + checkpoint_copy + loading + read_ahead_bytes(config) + store


def read_ahead_bytes(config: RunConfig) -> int:
    """Returns the bytes of the images that the learner's processes hold before they are encoded; 0 without threads."""
    data = config.data
    return MAX_BATCHES * data.batch_size * 3 * data.image_size**2 if data.decode_threads else 0
