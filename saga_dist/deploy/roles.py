"""From a configuration to pods: which roles there are, how many pods of each, what each pod holds.

GPUs of a pod. A pod gets whole cards; actors may ask for fractions. An actor that asks for whole cards has them for
itself; fractions share cards, the largest first, each on the first card with room, as Ray places them. So one rollout
worker of 0.3 in a pod of its own takes a whole card and leaves 0.7 of it idle, while a learner of 0.7 and a rollout
worker of 0.3 in one pod (``placement = "shared"``) fill one card.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from saga_dist.config import RunConfig
from saga_dist.deploy.options import DeployOptions
from saga_dist.errors import ConfigError

_MEMORY_PER_GPU_GIB = 64
_MEMORY_WITHOUT_GPU_GIB = 8
_SHM_SPARE_GIB = 1  # per GPU: vLLM's, torch's and NCCL's own shared memory, beside Ray's objects
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Ask:
    """What one actor asks Ray for."""

    role: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Group:
    """One group of equal pods.

    Args:
        name: of the group; the role, or ``trainer`` when the roles share a pod.
        actors: those that fit in one pod.
        min_pods, max_pods: how far the autoscaler may go.
        pods: how many the run asks for at its start.
        cpus, gpus: what one pod offers to Ray.
        memory_gib: of the pod's processes; ``/dev/shm`` comes on top.
        shm_gib: size of ``/dev/shm``.
        node: labels of the nodes it may run on.
    """

    name: str
    actors: tuple[Ask, ...]
    min_pods: int
    max_pods: int
    pods: int
    cpus: int
    gpus: int
    memory_gib: int
    shm_gib: int
    node: dict[str, str]

    @property
    def elastic(self) -> bool:
        """True when the autoscaler has anything to decide."""
        return self.min_pods < self.max_pods

    @property
    def roles(self) -> dict[str, int]:
        """Custom resources of one pod: how many actors of each role it takes."""
        names = [ask.role for ask in self.actors]
        return {name: names.count(name) for name in dict.fromkeys(names)}


def cards(asks: Sequence[float]) -> int:
    """Returns how many whole GPUs hold these asks.

    Args:
        asks: GPUs per actor, each at most 1 or whole.
    """
    whole = sum(int(ask) for ask in asks if ask >= 1)
    free: list[float] = []
    for ask in sorted((ask for ask in asks if 0 < ask < 1), reverse=True):
        for index, room in enumerate(free):
            if ask <= room + _ROUNDING:
                free[index] -= ask
                break
        else:
            free.append(1.0 - ask)
    return whole + len(free)


def groups(config: RunConfig, options: DeployOptions) -> list[Group]:
    """Returns the groups of pods: the learner's first; rollout and replay where the run has them.

    Raises:
        ConfigError: an impossible request.
    """
    runtime = config.runtime
    learner = _ask("learner", runtime.learner_num_cpus, runtime.learner_num_gpus, "runtime.learner_num_gpus")
    rollout = _ask("rollout", config.rollout.num_cpus, config.rollout.num_gpus, "rollout.num_gpus")
    replay = _ask("replay", config.replay.num_cpus, config.replay.num_gpus, "replay.num_gpus")
    rollouts = config.rollout.workers if config.needs_mllm else 0
    replays = config.replay.workers if config.needs_mllm else 0
    _refuse_ranges_without_pods(options, rollouts, replays)
    if options.placement == "shared":
        actors = (*(learner,) * runtime.learner_processes, *(rollout,) * rollouts, *(replay,) * replays)
        return [_group("trainer", actors, options, (1, 1, 1), options.learner_memory, options.learner_node)]
    per_pod = options.learner_processes_per_pod
    if runtime.learner_processes % per_pod:
        raise ConfigError(
            f"--learner-processes-per-pod = {per_pod} for runtime.learner_processes = {runtime.learner_processes}",
            where="command line",
            expected="equal pods",
            fix="choose a divisor",
        )
    learners = (runtime.learner_processes // per_pod,) * 3
    found = [_group("learner", (learner,) * per_pod, options, learners, options.learner_memory, options.learner_node)]
    if rollouts:
        per_pod = options.rollout_workers_per_pod
        counts = _counts("rollout", rollouts, per_pod, options.rollout_min, options.rollout_max)
        found.append(
            _group("rollout", (rollout,) * per_pod, options, counts, options.rollout_memory, options.rollout_node)
        )
    if replays:
        counts = _counts("replay", replays, 1, options.replay_min, options.replay_max)
        found.append(_group("replay", (replay,), options, counts, options.replay_memory, options.replay_node))
    return found


def _ask(role: str, cpus: float, gpus: float, key: str) -> Ask:
    if gpus > 1 and not float(gpus).is_integer():
        raise ConfigError(
            f"{key} = {gpus:g}",
            where="configuration",
            expected="a fraction of one GPU or a whole number",
            fix=f"set {key} = {math.ceil(gpus)}",
        )
    return Ask(role, cpus, gpus)


def _refuse_ranges_without_pods(options: DeployOptions, rollouts: int, replays: int) -> None:
    for role, workers in (("rollout", rollouts), ("replay", replays)):
        for bound in ("min", "max"):
            value = getattr(options, f"{role}_{bound}")
            if value is None:
                continue
            if options.placement == "shared":
                raise ConfigError(
                    f"--{role}-{bound} = {value} with --placement = shared: the one pod cannot grow",
                    where="command line",
                    fix="leave it out, or use --placement separate",
                )
            if not workers:
                raise ConfigError(
                    f"--{role}-{bound} = {value} for a run without {role} workers",
                    where="command line",
                    fix=f"leave it out, or set {role}.workers",
                )


def _counts(role: str, workers: int, per_pod: int, low: int | None, high: int | None) -> tuple[int, int, int]:
    """Returns (min, max, at the start) pods."""
    pods = -(-workers // per_pod)
    high = max(pods, low or 0) if high is None else high
    low = min(pods, high) if low is None else low
    if pods > high:
        raise ConfigError(
            f"--{role}-max = {high} pods hold {high * per_pod} of {role}.workers = {workers}: the others would wait "
            "for ever",
            where="command line",
            fix=f"raise it to {pods}, or lower {role}.workers",
        )
    return low, high, max(pods, low)


def _group(
    name: str,
    actors: tuple[Ask, ...],
    options: DeployOptions,
    counts: tuple[int, int, int],
    memory_gib: int | None,
    node: dict[str, str],
) -> Group:
    low, high, pods = counts
    gpus = cards([ask.gpus for ask in actors])
    return Group(
        name=name,
        actors=actors,
        min_pods=low,
        max_pods=high,
        pods=pods,
        cpus=max(1, math.ceil(sum(ask.cpus for ask in actors) - _ROUNDING)),
        gpus=gpus,
        memory_gib=memory_gib or (gpus * _MEMORY_PER_GPU_GIB if gpus else _MEMORY_WITHOUT_GPU_GIB * len(actors)),
        shm_gib=options.object_store + _SHM_SPARE_GIB * max(1, gpus),
        node=node,
    )
