"""The command ``saga-dist manifest``: prints a run's manifest for Kubernetes or Ray's cluster launcher."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from saga_dist.utils.atomic_io import probe_output, write_atomic


class Kind(StrEnum):
    """Kind of manifest to print."""

    RAYJOB = "rayjob"
    RAYCLUSTER = "raycluster"
    LAUNCHER = "launcher"


_Node = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="label of the nodes; may be repeated")]
_GiB = Annotated[int | None, typer.Option(help="GiB of a pod, /dev/shm not counted")]
_Pods = Annotated[int | None, typer.Option(help="pods; default: what the configured workers need")]


def manifest(
    config: Annotated[Path, typer.Argument(help="TOML file", metavar="CONFIG.toml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value …", metavar="[KEY=VALUE]…")] = None,
    kind: Annotated[Kind, typer.Option(help="KubeRay job, KubeRay cluster, or file for `ray up`")] = Kind.RAYJOB,
    name: Annotated[str | None, typer.Option(help="name of the run; default: the file's name")] = None,
    image: Annotated[str | None, typer.Option(help="container image, see docker/")] = None,
    namespace: Annotated[str | None, typer.Option(help="Kubernetes namespace")] = None,
    placement: Annotated[str | None, typer.Option(help="separate (pods per role) or shared (one pod for all)")] = None,
    rollout_min: _Pods = None,
    rollout_max: _Pods = None,
    learner_processes_per_pod: Annotated[int | None, typer.Option(help="runtime.learner_processes in one pod")] = None,
    rollout_workers_per_pod: Annotated[int | None, typer.Option(help="rollout workers in one pod or machine")] = None,
    replay_min: _Pods = None,
    replay_max: _Pods = None,
    head_memory: _GiB = None,
    learner_memory: _GiB = None,
    rollout_memory: _GiB = None,
    replay_memory: _GiB = None,
    object_store: Annotated[int | None, typer.Option(help="GiB of /dev/shm for Ray's objects, each pod")] = None,
    gpu_key: Annotated[str | None, typer.Option(help="GPU resource, default nvidia.com/gpu")] = None,
    learner_node: _Node = None,
    rollout_node: _Node = None,
    replay_node: _Node = None,
    weights_claim: Annotated[str | None, typer.Option(help="volume claim with model folders (read-only)")] = None,
    data_claim: Annotated[str | None, typer.Option(help="volume claim with images (read-only)")] = None,
    runs_claim: Annotated[str | None, typer.Option(help="volume claim for run directories (shared)")] = None,
    auth_secret: Annotated[str | None, typer.Option(help="Secret with auth_token; default: KubeRay makes one")] = None,
    mirror_secret: Annotated[
        str | None, typer.Option(help="Secret with the environment that checkpoint.mirror needs")
    ] = None,
    submission_mode: Annotated[str | None, typer.Option(help="K8sJobMode, SidecarMode, HTTPMode …")] = None,
    retries: Annotated[int | None, typer.Option(help="new clusters after a failure; each resumes")] = None,
    keep_s: Annotated[int | None, typer.Option(help="seconds that a finished cluster stays")] = None,
    grace_s: Annotated[int | None, typer.Option(help="seconds for the last step and its checkpoint")] = None,
    idle_s: Annotated[int | None, typer.Option(help="seconds until an idle pod of an elastic group ends")] = None,
    head_ip: Annotated[str | None, typer.Option(help="launcher: machine of head and learner")] = None,
    worker_ip: Annotated[list[str] | None, typer.Option(help="launcher: another machine; may be repeated")] = None,
    ssh_user: Annotated[str | None, typer.Option(help="launcher: user for ssh to the machines")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write to this file instead of printing")] = None,
) -> None:
    """Print the manifest of a run: KubeRay job or cluster, or the file of Ray's cluster launcher."""
    from saga_dist.config import load_config
    from saga_dist.deploy.kuberay import raycluster, rayjob
    from saga_dist.deploy.launcher import launcher
    from saga_dist.deploy.options import make_options
    from saga_dist.deploy.render import made_with, render, summary

    if out is not None:
        probe_output(out, option="--out")
    resolved = load_config(config, overrides or [])
    given = {
        "image": image,
        "namespace": namespace,
        "placement": placement,
        "rollout_min": rollout_min,
        "rollout_max": rollout_max,
        "learner_processes_per_pod": learner_processes_per_pod,
        "rollout_workers_per_pod": rollout_workers_per_pod,
        "replay_min": replay_min,
        "replay_max": replay_max,
        "head_memory": head_memory,
        "learner_memory": learner_memory,
        "rollout_memory": rollout_memory,
        "replay_memory": replay_memory,
        "object_store": object_store,
        "gpu_key": gpu_key,
        "learner_node": _labels("learner", learner_node),
        "rollout_node": _labels("rollout", rollout_node),
        "replay_node": _labels("replay", replay_node),
        "weights_claim": weights_claim,
        "data_claim": data_claim,
        "runs_claim": runs_claim,
        "auth_secret": auth_secret,
        "mirror_secret": mirror_secret,
        "submission_mode": submission_mode,
        "retries": retries,
        "keep_s": keep_s,
        "grace_s": grace_s,
        "idle_s": idle_s,
        "head_ip": head_ip,
        "worker_ips": tuple(worker_ip) if worker_ip else None,
        "ssh_user": ssh_user,
    }
    options = make_options(name=name or config.stem.replace("_", "-"), **given)
    lines = summary(resolved, options)
    match kind:
        case Kind.RAYJOB:
            documents = rayjob(resolved, options)
        case Kind.RAYCLUSTER:
            documents = raycluster(resolved, options)
        case Kind.LAUNCHER:
            documents, lines = [launcher(resolved, options)], []  # the summary lists pods, and the launcher has none
    arguments = [str(config), *(overrides or []), "--kind", kind.value, "--name", options.name]
    for key, value in given.items():
        option = "--" + {"worker_ips": "worker-ip"}.get(key, key.replace("_", "-"))
        values = value if isinstance(value, tuple) else (value,)
        if isinstance(value, dict):
            values = tuple(f"{label}={text}" for label, text in value.items())
        arguments += [word for item in values if item is not None for word in (option, str(item))]
    text = render(documents, [made_with(arguments), *lines])
    if out is None:
        typer.echo(text, nl=False)
        return
    write_atomic(out, text.encode(), option="--out")


def _labels(role: str, pairs: list[str] | None) -> dict[str, str] | None:
    from saga_dist.errors import ConfigError

    labels = {}
    for pair in pairs or []:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ConfigError(f"--{role}-node {pair!r}", where="command line", expected="KEY=VALUE")
        labels[key] = value
    return labels or None
