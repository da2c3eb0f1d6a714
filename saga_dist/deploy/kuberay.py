"""KubeRay's custom resources: RayJob, RayCluster, and the ConfigMap that their pods mount."""

from __future__ import annotations

import json
from typing import Any

from saga_dist.config import RunConfig
from saga_dist.deploy.options import RAY_VERSION, DeployOptions
from saga_dist.deploy.pods import HEAD_OBJECTS_GIB, head_template, worker_template
from saga_dist.deploy.roles import Group, groups
from saga_dist.deploy.run_config import CONFIG_FOLDER, RUN_FILE, RUNS_FOLDER, PackedConfig, pack
from saga_dist.errors import ConfigError

Manifest = dict[str, Any]


def rayjob(config: RunConfig, options: DeployOptions) -> list[Manifest]:
    """Returns the ConfigMap and the RayJob of a run: one resource for cluster, training and clean-up.

    Every retry is a new cluster with the same run directory, so it resumes from the last checkpoint.

    Args:
        config: configuration of the run.
        options: options of the manifest.

    Raises:
        ConfigError: configuration and options contradict each other, or the run cannot happen on such a cluster.
    """
    packed = pack(config)
    spec = {
        "submissionMode": options.submission_mode,
        "entrypoint": entrypoint(options),
        # The head's preStop hook stops the run by this name.
        "jobId": options.name,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": options.keep_s,
        "backoffLimit": options.retries,
        "rayClusterSpec": _cluster_spec(config, options, packed),
    }
    return [_config_map(options, packed), _resource("RayJob", options, spec)]


def raycluster(config: RunConfig, options: DeployOptions) -> list[Manifest]:
    """Returns the ConfigMap and a RayCluster to which runs are sent with ``ray job submit``.

    Args:
        config: configuration of the run.
        options: options of the manifest.

    Raises:
        ConfigError: configuration and options contradict each other, or the run cannot happen on such a cluster.
    """
    packed = pack(config)
    spec = _cluster_spec(config, options, packed)
    return [_config_map(options, packed), _resource("RayCluster", options, spec)]


def entrypoint(options: DeployOptions) -> str:
    """Returns the shell command of the run; the same command starts and resumes it."""
    return f"saga-dist train {CONFIG_FOLDER}/{RUN_FILE} --run-dir {RUNS_FOLDER}/{options.name}"


def _cluster_spec(config: RunConfig, options: DeployOptions, packed: PackedConfig) -> Manifest:
    if options.mirror_secret and not config.checkpoint.mirror:
        raise ConfigError(
            f"--mirror-secret = {options.mirror_secret} for a run without checkpoint.mirror",
            where="command line",
            fix="leave it out, or set checkpoint.mirror",
        )
    planned = groups(config, options)
    spec: Manifest = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"} | ({"secretName": options.auth_secret} if options.auth_secret else {}),
        "enableInTreeAutoscaling": any(group.elastic for group in planned),
    }
    if spec["enableInTreeAutoscaling"]:
        spec["autoscalerOptions"] = {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": options.idle_s,
            "env": [{"name": "RAY_AUTH_MODE", "value": "token"}],
            "resources": {
                "requests": {"cpu": "500m", "memory": "1Gi"},
                "limits": {"memory": "1Gi"},
            },
        }
    return spec | {
        "headGroupSpec": {
            "rayStartParams": {
                "num-cpus": "0",  # no actor on the head
                "num-gpus": "0",
                "dashboard-host": "0.0.0.0",  # the operator calls it from another pod; requests need the token
                "object-store-memory": str(HEAD_OBJECTS_GIB * 1024**3),
            },
            "template": head_template(options, packed),
        },
        "workerGroupSpecs": [_worker_group(group, options, packed) for group in planned],
    }


def _worker_group(group: Group, options: DeployOptions, packed: PackedConfig) -> Manifest:
    offered = {"num-cpus": str(group.cpus), "num-gpus": str(group.gpus)}
    # KubeRay inserts the values into a shell command, hence the inner quotes.
    offered["resources"] = "'" + json.dumps(group.roles, separators=(",", ":")) + "'"
    offered["object-store-memory"] = str(options.object_store * 1024**3)
    return {
        "groupName": group.name,
        "replicas": group.pods,
        "minReplicas": group.min_pods,
        "maxReplicas": group.max_pods,
        "rayStartParams": offered,
        "template": worker_template(group, options, packed),
    }


def _config_map(options: DeployOptions, packed: PackedConfig) -> Manifest:
    metadata = _metadata(options) | {"name": f"{options.name}-config"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(packed.files)}


def _resource(kind: str, options: DeployOptions, spec: Manifest) -> Manifest:
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": _metadata(options), "spec": spec}


def _metadata(options: DeployOptions) -> Manifest:
    metadata: Manifest = {"name": options.name}
    if options.namespace:
        metadata["namespace"] = options.namespace
    return metadata | {"labels": {"app.kubernetes.io/part-of": "saga-dist", "saga-dist/run": options.name}}
