"""Check of GPU requests that put several processes on one GPU without anybody having asked for it."""

from __future__ import annotations

from saga_dist.config import RunConfig
from saga_dist.errors import ConfigError
from saga_dist.runtime.validation.facts import RunFacts
from saga_dist.runtime.validation.gpus import visible_gpus


def check_gpu_requests(run: RunFacts) -> str:
    """Returns a warning when the workers of a role would all use the first GPU of their node.

    Ray hides no GPU from an actor that requests none, and such an actor takes the first. Nothing is said of a run that
    has no GPU, or runs in one process.

    Raises:
        ConfigError: several learner processes would use the same GPU, which NCCL refuses.
    """
    config = run.config
    runtime, rollout, replay = config.runtime, config.rollout, config.replay
    if runtime.kind != "ray" or config.model.device == "cpu" or not _has_gpus(config):
        return ""
    if runtime.learner_processes > 1 and not runtime.learner_num_gpus:
        raise ConfigError(
            f"runtime.learner_processes = {runtime.learner_processes} with runtime.learner_num_gpus = 0: all of them "
            "would use the first GPU, and NCCL refuses that",
            fix="set runtime.learner_num_gpus = 1, or model.device = cpu",
        )
    roles = [
        ("rollout", rollout.workers if config.needs_engine else 0, rollout.num_gpus),
        ("replay", replay.workers if config.needs_mllm else 0, replay.num_gpus),
    ]
    return "; ".join(
        f"{name}.workers = {workers} with {name}.num_gpus = 0: all of them use the first GPU of their node; set "
        f"{name}.num_gpus = 1, or {1 / workers:.2g} to share one on purpose"
        for name, workers, num_gpus in roles
        if workers > 1 and not num_gpus
    )


def _has_gpus(config: RunConfig) -> bool:
    """Returns True when the run uses GPUs: some role requests one, the device says so, or this machine has one."""
    requests = (config.runtime.learner_num_gpus, config.rollout.num_gpus, config.replay.num_gpus)
    return any(requests) or config.model.device.startswith("cuda") or bool(visible_gpus())
