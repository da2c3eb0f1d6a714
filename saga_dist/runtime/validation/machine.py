"""Checks of the machine: installed packages, devices, CPUs and GPUs, the run directory and its disk."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace

from saga_dist.config import RunConfig
from saga_dist.errors import CheckpointError, ConfigError
from saga_dist.models.tower_size import num_tower_parameters
from saga_dist.runtime.earlier_run import changed_keys, is_unfinished_start
from saga_dist.runtime.ray.resources import missing_resources, resource_requests
from saga_dist.runtime.validation.facts import RunFacts, joins_cluster
from saga_dist.runtime.validation.gpus import visible_gpus
from saga_dist.utils.output_errors import output_errors, refuse_package_cache

DEVICE_TYPES = ("cpu", "cuda", "hpu", "ipu", "lazy", "maia", "meta", "mps", "mtia", "privateuseone", "ve", "xla", "xpu")
"""Types of torch devices."""
PACKAGES = {"vllm": "pip install 'saga-dist[cpu]' or 'saga-dist[gpu]', or set rollout.engine=transformers"}
"""Package of each engine that is not installed with this package, with the advice to install it."""
CHECKPOINT_BYTES_PER_PARAMETER = 12
"""A checkpoint has a weight and two moments of AdamW, float32 each, for every trained parameter."""
_DEVICE = re.compile(r"([a-z]+)(?::(\d+))?")


def check_run_directory(run: RunFacts) -> str:
    """Checks that the run directory can be written, and that no run of another configuration has taken steps in it.

    A file is created and removed in the directory, or in the nearest folder above it.

    Raises:
        OutputError: it cannot be written.
        ConfigError: there is such a run.
    """
    path = run.directory.absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    refuse_package_cache(path, option=run.option)
    with output_errors(path, option=run.option):
        with tempfile.TemporaryFile(dir=existing):
            pass
        foreign = path.is_dir() and not (path / "config.json").exists() and not is_unfinished_start(path)
    if foreign:
        raise ConfigError("holds files but no config.json", where=str(run.directory), fix="choose a new --run-dir")
    with suppress(CheckpointError):  # a damaged config.json, which opening the run directory mends
        changed_keys(run.directory, run.config)
    return ""


def check_engine(run: RunFacts) -> str:
    """Checks that the package of the configured engine is installed.

    Raises:
        ConfigError: it is not.
    """
    engine = run.config.rollout.engine
    if not run.config.needs_engine or engine not in PACKAGES or joins_cluster(run.config):
        return ""
    if importlib.util.find_spec(engine) is None:
        raise ConfigError(f"{engine} is not installed", where=f"rollout.engine = {engine!r}", fix=PACKAGES[engine])
    return ""


def check_devices(run: RunFacts) -> str:
    """Checks that ``model.device`` is a device, and that it is there when everything runs in this process.

    Raises:
        ConfigError: it is not.
    """
    config, there = run.config, visible_gpus()
    device = config.model.device
    match = _DEVICE.fullmatch(device)
    if device != "auto" and (match is None or match[1] not in DEVICE_TYPES):
        raise ConfigError(f"model.device = {device!r}", expected="auto, cpu, cuda or cuda:N")
    if config.runtime.kind != "serial" or there is None:
        return ""
    wanted = _gpus_of_this_process(config, there)
    if wanted > there:
        raise ConfigError(
            f"{wanted} GPUs needed, {there} there",
            where=f"model.device = {device!r}, replay.num_gpus = {config.replay.num_gpus:g}",
            fix='set model.device = "auto" or "cpu", lower replay.num_gpus, or check CUDA_VISIBLE_DEVICES',
        )
    return ""


def _gpus_of_this_process(config: RunConfig, there: int) -> int:
    """Returns the number of GPUs that a serial run uses; 0 on another device."""
    kind, _, index = config.model.device.partition(":")
    if kind == "cuda" or (kind == "auto" and there):
        return max(int(index or 0) + 1, int(config.replay.num_gpus))
    return 0


def check_local_resources(run: RunFacts) -> str:
    """Checks that a Ray of the run's own, on this machine, has the CPUs and GPUs that the actors request.

    Raises:
        ConfigError: it has fewer.
    """
    config, there = run.config, visible_gpus()
    if config.runtime.kind != "ray" or joins_cluster(config):
        return ""
    requests = [replace(need, pinned=False) for need in resource_requests(config)]
    gpus = math.inf if there is None else float(there)
    elsewhere = "or run on a cluster (runtime.address, `ray job submit`)"
    if missing := missing_resources(requests, {"CPU": float(config.runtime.local_cpus), "GPU": math.inf}):
        raise ConfigError(
            missing,
            where=f"runtime.local_cpus = {config.runtime.local_cpus}",
            fix=f"raise runtime.local_cpus, lower the number of workers, {elsewhere}",
        )
    if missing := missing_resources(requests, {"CPU": math.inf, "GPU": gpus}):
        raise ConfigError(
            missing,
            where="this machine, for a local Ray",
            fix="lower runtime.learner_num_gpus, rollout.num_gpus, replay.num_gpus (0: none) or the number of workers, "
            + elsewhere,
        )
    return ""


def check_disk(run: RunFacts) -> str:
    """Checks that the disk of a new run directory has room for the run's checkpoints, recordings not counted.

    Raises:
        ConfigError: it has not.
    """
    whole = run.config.model.train == "all"  # of a part of the tower, the headers do not tell the size
    parameters = num_tower_parameters(run.model_folder) if whole and run.model_folder is not None else None
    if parameters is None or (run.directory / "checkpoints").exists():
        return ""
    path = run.directory.absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    count = _checkpoints_at_once(run)
    needed = count * CHECKPOINT_BYTES_PER_PARAMETER * parameters
    if needed > free:
        raise ConfigError(
            f"{count} checkpoints take {needed / 1e9:.1f} GB or more, {free / 1e9:.1f} GB are free",
            where=str(run.directory),
            fix="lower checkpoint.keep, free some space, or choose another --run-dir",
        )
    return ""


def _checkpoints_at_once(run: RunFacts) -> int:
    """Returns the checkpoints that exist at the same time: the newest ones, and the one that is being written."""
    settings, steps = run.config.checkpoint, run.config.run.steps
    return min(settings.keep + 1, -(-steps // settings.every_steps))
