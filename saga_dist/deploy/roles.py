"""Plans the groups of pods of a run: its roles, the number of pods of each, and the actors and GPUs of a pod.

A pod gets whole GPUs; actors may request fractions. An actor that requests whole GPUs has them for itself; fractions
share GPUs, the largest first, each on the first GPU with enough left, as Ray places them. So one rollout worker with
0.3 in a pod of its own takes a whole GPU and leaves 0.7 of it idle, while a learner with 0.7 and a rollout worker with
0.3 in one pod (``placement = "shared"``) fill one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from saga_dist.config import RunConfig, WorkersSection
from saga_dist.deploy.options import DeployOptions
from saga_dist.errors import ConfigError

_MEMORY_PER_GPU_GIB = 64
_MEMORY_WITHOUT_GPU_GIB = 8
_SHM_EXTRA_GIB = 1  # per GPU: shared memory of vLLM, torch and NCCL, besides Ray's objects
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class ActorRequest:
    """Resources that one actor requests from Ray."""

    role: str
    """``learner``, ``rollout`` or ``replay``."""
    cpus: float
    """CPUs of the actor."""
    gpus: float
    """GPUs of the actor: a fraction of one, or a whole number."""


@dataclass(frozen=True, slots=True)
class Group:
    """One group of equal pods."""

    name: str
    """The role, or ``trainer`` when the roles share a pod."""
    actors: tuple[ActorRequest, ...]
    """Actors of one pod."""
    min_pods: int
    """Fewest pods that the autoscaler keeps."""
    max_pods: int
    """Most pods that the autoscaler starts."""
    pods: int
    """Pods that the run requests at its start."""
    cpus: int
    """CPUs that one pod offers to Ray."""
    gpus: int
    """GPUs that one pod offers to Ray."""
    memory_gib: int
    """GiB for the processes of one pod, ``/dev/shm`` not included."""
    shm_gib: int
    """Size of ``/dev/shm`` in GiB."""
    node: dict[str, str]
    """Labels of the nodes on which the pods may run; empty: any node."""

    @property
    def elastic(self) -> bool:
        """True when the autoscaler may change the number of pods."""
        return self.min_pods < self.max_pods

    @property
    def roles(self) -> dict[str, int]:
        """Number of actors of each role in one pod; these are the custom Ray resources of the pod."""
        names = [actor.role for actor in self.actors]
        return {name: names.count(name) for name in dict.fromkeys(names)}


def gpus_needed(requests: Sequence[float]) -> int:
    """Returns the number of whole GPUs that hold these requests.

    Args:
        requests: GPUs per actor, each at most 1 or a whole number.
    """
    whole = sum(int(request) for request in requests if request >= 1)
    free: list[float] = []
    for request in sorted((request for request in requests if 0 < request < 1), reverse=True):
        for index, left in enumerate(free):
            if request <= left + _ROUNDING:
                free[index] -= request
                break
        else:
            free.append(1.0 - request)
    return whole + len(free)


def groups(config: RunConfig, options: DeployOptions) -> list[Group]:
    """Returns the groups of pods: the learner's first, then rollout and replay when the run has such workers.

    Args:
        config: configuration of the run.
        options: options of the manifest.

    Raises:
        ConfigError: a GPU request is neither a fraction of one GPU nor a whole number, or the options do not fit the
            configuration (pods that are not equal, ranges of pods that do not exist or are too small).
    """
    runtime = config.runtime
    learner = _request("learner", runtime.learner_num_cpus, runtime.learner_num_gpus, "runtime.learner_num_gpus")
    rollout = _request("rollout", config.rollout.num_cpus, config.rollout.num_gpus, "rollout.num_gpus")
    replay = _request("replay", config.replay.num_cpus, config.replay.num_gpus, "replay.num_gpus")
    rollouts = config.rollout.workers if config.needs_engine else 0
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
        counts = _counts(config.rollout, "rollout", per_pod, options.rollout_min, options.rollout_max)
        found.append(
            _group("rollout", (rollout,) * per_pod, options, counts, options.rollout_memory, options.rollout_node)
        )
    if replays:
        counts = _counts(config.replay, "replay", 1, options.replay_min, options.replay_max)
        found.append(_group("replay", (replay,), options, counts, options.replay_memory, options.replay_node))
    return found


def _request(role: str, cpus: float, gpus: float, key: str) -> ActorRequest:
    """Returns an actor's request; ``key`` is the configuration key of its GPUs, for the error."""
    if gpus > 1 and not float(gpus).is_integer():
        raise ConfigError(
            f"{key} = {gpus:g}",
            where="configuration",
            expected="a fraction of one GPU or a whole number",
            fix=f"set {key} = {math.ceil(gpus)}",
        )
    return ActorRequest(role, cpus, gpus)


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


def _counts(
    section: WorkersSection, role: str, per_pod: int, low: int | None, high: int | None
) -> tuple[int, int, int]:
    """Returns the minimum, maximum and initial number of pods; bounds of the command line override the configuration's.

    Args:
        section: workers of the role in the configuration.
        role: ``rollout`` or ``replay``, for the error.
        per_pod: workers of one pod.
        low: fewest pods by the command line, or None.
        high: most pods by the command line, or None.

    Raises:
        ConfigError: the most pods cannot hold the configured workers.
    """
    workers = section.workers
    fewest, pods, most = (-(-count // per_pod) for count in (section.worker_range[0], workers, section.worker_range[1]))
    high = max(most, low or 0) if high is None else high
    low = min(fewest, high) if low is None else low
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
    actors: tuple[ActorRequest, ...],
    options: DeployOptions,
    counts: tuple[int, int, int],
    memory_gib: int | None,
    node: dict[str, str],
) -> Group:
    low, high, pods = counts
    gpus = gpus_needed([actor.gpus for actor in actors])
    return Group(
        name=name,
        actors=actors,
        min_pods=low,
        max_pods=high,
        pods=pods,
        cpus=max(1, math.ceil(sum(actor.cpus for actor in actors) - _ROUNDING)),
        gpus=gpus,
        memory_gib=memory_gib or (gpus * _MEMORY_PER_GPU_GIB if gpus else _MEMORY_WITHOUT_GPU_GIB * len(actors)),
        shm_gib=options.object_store + _SHM_EXTRA_GIB * max(1, gpus),
        node=node,
    )
