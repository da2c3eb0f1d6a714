"""Pod templates of the Ray head and of the worker groups."""

from __future__ import annotations

from typing import Any

from saga_dist.deploy.options import DeployOptions
from saga_dist.deploy.roles import Group
from saga_dist.deploy.run_config import CONFIG_FOLDER, DATA_FOLDER, RUNS_FOLDER, WEIGHTS_FOLDER, PackedConfig

PRIORITY_LEARNER = "saga-learner"
"""Priority class of head and learner, defined in deploy/kuberay/priorities.yaml."""
PRIORITY_ROLLOUT = "saga-rollout"
"""Priority class of rollout and replay pods, lower than ``PRIORITY_LEARNER``; defined in the same file."""

USER_ID = 10001
"""User and group id of both images; the group owns the files that pods write to the run volume."""

HEAD_OBJECTS_GIB = 1
"""GiB of Ray's object store in the head, which handles references and small records only."""

_HEAD_CPUS = 2
_HEAD_SHM_GIB = HEAD_OBJECTS_GIB + 1
_RAYLET_CPUS = 1
_DRAIN_MARGIN_S = 30
_KILL_MARGIN_S = 60

_QUIET = {
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
}

# A node autoscaler must not evict a pod whose loss would interrupt the run.
_DO_NOT_EVICT = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}


def head_template(options: DeployOptions, packed: PackedConfig) -> dict[str, Any]:
    """Returns the pod template of Ray's head, where the coordinator runs without actors and GPUs.

    A preStop hook stops the run, which then writes a checkpoint. This needs a live learner, so worker pods drain for as
    long as the head waits.
    """
    environment = {
        **_environment(packed),
        "RAY_JOB_STOP_WAIT_TIME_S": str(options.grace_s),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    stop = f"timeout {options.grace_s + _DRAIN_MARGIN_S} ray job stop --address http://127.0.0.1:8265 {options.name}"
    container = {
        "name": "ray-head",
        "image": options.image,
        "env": _as_list(environment),
        # The coordinator writes the mirror from here; no other pod needs the credentials.
        **({"envFrom": [{"secretRef": {"name": options.mirror_secret}}]} if options.mirror_secret else {}),
        "ports": [
            {"name": "gcs-server", "containerPort": 6379},
            {"name": "dashboard", "containerPort": 8265},
            {"name": "client", "containerPort": 10001},
        ],
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", f"{stop} || true"]}}},
        "resources": _resources(_HEAD_CPUS, options.head_memory + _HEAD_SHM_GIB, {}),
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            {"name": "runs", "mountPath": RUNS_FOLDER},
        ],
    }
    volumes = [_shm(_HEAD_SHM_GIB), _config_map(options.name), _claim("runs", options.runs_claim, read_only=False)]
    return _template("head", container, volumes, PRIORITY_LEARNER, options, {}, gpus=0)


def worker_template(group: Group, options: DeployOptions, packed: PackedConfig) -> dict[str, Any]:
    """Returns the pod template of one group; after SIGTERM its actors run until the run stops or the grace ends."""
    has_learner = "learner" in group.roles
    environment = {
        **_environment(packed),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(options.grace_s + _DRAIN_MARGIN_S),
    }
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]
    volumes = [_shm(group.shm_gib)]
    if packed.needs_weights:
        mounts.append({"name": "weights", "mountPath": WEIGHTS_FOLDER, "readOnly": True})
        volumes.append(_claim("weights", options.weights_claim, read_only=True))
    # Any role may read class lists and vocabularies to build splits and prompts; they are small, so every pod has them.
    mounts.append({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True})
    volumes.append(_config_map(options.name))
    if has_learner:
        if packed.needs_data:
            mounts.append({"name": "data", "mountPath": DATA_FOLDER, "readOnly": True})
            volumes.append(_claim("data", options.data_claim, read_only=True))
        mounts.append({"name": "runs", "mountPath": RUNS_FOLDER})
        volumes.append(_claim("runs", options.runs_claim, read_only=False))
    container = {
        "name": "ray-worker",
        "image": options.image,
        "env": _as_list(environment),
        "resources": _resources(
            group.cpus + _RAYLET_CPUS,
            group.memory_gib + group.shm_gib,
            {options.gpu_key: str(group.gpus)} if group.gpus else {},
        ),
        "volumeMounts": mounts,
    }
    priority = PRIORITY_LEARNER if has_learner else PRIORITY_ROLLOUT
    return _template(group.name, container, volumes, priority, options, group.node, gpus=group.gpus)


def _template(
    role: str,
    container: dict[str, Any],
    volumes: list[dict[str, Any]],
    priority: str,
    options: DeployOptions,
    node: dict[str, str],
    *,
    gpus: int,
) -> dict[str, Any]:
    evictable = priority != PRIORITY_LEARNER
    spec: dict[str, Any] = {
        "priorityClassName": priority,
        "terminationGracePeriodSeconds": options.grace_s + _KILL_MARGIN_S,
        "restartPolicy": "Never",  # autoscaler v2 requires it and creates new pods itself
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",  # else every start would walk a volume of a million images
        },
        "containers": [
            {
                **container,
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
        "volumes": volumes,
    }
    if node:
        spec["nodeSelector"] = dict(node)
    if gpus:
        spec["tolerations"] = [{"key": options.gpu_key, "operator": "Exists", "effect": "NoSchedule"}]
    metadata: dict[str, Any] = {"labels": {"app.kubernetes.io/part-of": "saga-dist", "saga-dist/role": role}}
    if not evictable:
        metadata["annotations"] = dict(_DO_NOT_EVICT)
    return {"metadata": metadata, "spec": spec}


def _environment(packed: PackedConfig) -> dict[str, str]:
    # KubeRay adds the token itself, from the Secret.
    environment = {**_QUIET, "RAY_AUTH_MODE": "token"}
    if packed.needs_weights:
        environment["HF_HUB_OFFLINE"] = "1"  # weights come from the volume only
    if packed.hub_cache:
        environment["HF_HOME"] = WEIGHTS_FOLDER
    return environment


def _as_list(environment: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in sorted(environment.items())]


def _resources(cpus: int, memory_gib: int, extended: dict[str, str]) -> dict[str, Any]:
    # CPUs have a request but no limit, because a limit throttles without benefit. Memory has both: with a request alone
    # the pod could be killed when the node runs out of memory.
    memory = {"memory": f"{memory_gib}Gi"}
    return {"requests": {"cpu": str(cpus), **memory, **extended}, "limits": {**memory, **extended}}


def _shm(size_gib: int) -> dict[str, Any]:
    return {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{size_gib}Gi"}}


def _config_map(name: str) -> dict[str, Any]:
    return {"name": "config", "configMap": {"name": f"{name}-config"}}


def _claim(volume: str, claim: str, *, read_only: bool) -> dict[str, Any]:
    return {"name": volume, "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}
