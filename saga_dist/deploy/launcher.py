"""The file of Ray's cluster launcher (``ray up``) for machines that can be reached by ssh."""

from __future__ import annotations

import json
from typing import Any

from saga_dist.config import RunConfig
from saga_dist.deploy.options import DeployOptions
from saga_dist.deploy.roles import groups
from saga_dist.deploy.run_config import DATA_FOLDER, RUNS_FOLDER, WEIGHTS_FOLDER, pack
from saga_dist.errors import ConfigError

_PORT = 6379
_TOKEN = "~/.ray/auth_token"
_READ_ONLY = (WEIGHTS_FOLDER, DATA_FOLDER)


def launcher(config: RunConfig, options: DeployOptions) -> dict[str, Any]:
    """Returns the cluster file: the learner on the head's machine, rollout and replay workers on the others.

    Without other machines the head's machine takes every role. Ray detects the CPUs and GPUs of a machine itself.

    Args:
        config: configuration of the run.
        options: options of the manifest; ``head_ip`` is required.

    Raises:
        ConfigError: the head is missing, a machine is named twice, the run has more workers than the machines take, or
            the run cannot happen on such a cluster.
    """
    if not options.head_ip:
        raise ConfigError("--head-ip is missing", where="command line", fix="name the machine of head and learner")
    machines = [options.head_ip, *options.worker_ips]
    if duplicates := sorted({name for name in machines if machines.count(name) > 1}):
        raise ConfigError(f"{duplicates[0]} is named twice", where="command line", fix="name every machine once")
    travelling = pack(config)
    head, worker = _roles(config, options)
    folders = {
        WEIGHTS_FOLDER: travelling.needs_weights,
        DATA_FOLDER: travelling.needs_data,
        RUNS_FOLDER: True,
    }
    volumes = [
        f"--volume={folder}:{folder}{':ro' if folder in _READ_ONLY else ''}"
        for folder, needed in folders.items()
        if needed
    ]
    shm_gib = max(group.shm_gib for group in groups(config, options))
    objects = f"--object-store-memory={options.object_store * 1024**3}"
    stop_wait = f"RAY_JOB_STOP_WAIT_TIME_S={options.grace_s}"
    return {
        "cluster_name": options.name,
        "max_workers": len(options.worker_ips),
        "provider": {"type": "local", "head_ip": options.head_ip, "worker_ips": list(options.worker_ips)},
        "auth": {"ssh_user": options.ssh_user},
        "docker": {
            "image": options.image,
            "container_name": options.name,
            "pull_before_run": False,
            "run_options": [
                # The launcher copies the token as root, and the image's own user cannot read that file.
                "--user=root",
                f"--shm-size={shm_gib}g",
                "--ulimit=nofile=65536:65536",
                "--env=RAY_AUTH_MODE=token",
                f"--env={stop_wait}",
                "--env=RAY_USAGE_STATS_ENABLED=0",
                "--env=VLLM_NO_USAGE_STATS=1",
                "--env=DO_NOT_TRACK=1",
                *volumes,
            ],
        },
        "file_mounts": {_TOKEN: _TOKEN},
        "head_start_ray_commands": [
            "ray stop",
            f"{stop_wait} {_start(head, objects)} --head --port={_PORT} --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", f"{_start(worker, objects)} --address=$RAY_HEAD_IP:{_PORT}"],
    }


def _start(roles: dict[str, int], objects: str) -> str:
    # Joining nodes and clients do not enable authentication by themselves, and then hang without a message.
    return f"RAY_AUTH_MODE=token ray start {objects} --resources='{json.dumps(roles, separators=(',', ':'))}'"


def _roles(config: RunConfig, options: DeployOptions) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the number of actors per role on the head's machine, and the same for each of the other machines."""
    replays = config.replay.workers if config.needs_mllm else 0
    rollouts = config.rollout.workers if config.needs_engine else 0
    learner = {"learner": config.runtime.learner_processes}
    machines = len(options.worker_ips)
    if not machines:
        return learner | {name: n for name, n in (("rollout", rollouts), ("replay", replays)) if n}, {}
    capacity = machines * options.rollout_workers_per_pod
    if rollouts > capacity:
        raise ConfigError(
            f"rollout.workers = {rollouts} on {machines} machines of {options.rollout_workers_per_pod}",
            where="command line",
            fix=f"add --worker-ip, or raise --rollout-workers-per-pod to {-(-rollouts // machines)}",
        )
    worker = {"rollout": options.rollout_workers_per_pod if rollouts else 0, "replay": -(-replays // machines)}
    return learner, {name: count for name, count in worker.items() if count}
