"""Devices of a run: the one place where ``model.device`` becomes a device, and torch is prepared for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from saga_dist.config import RunConfig
from saga_dist.errors import ConfigError

if TYPE_CHECKING:
    import torch

ALLOCATOR_ENVIRONMENT = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
"""Environment of learner and replay on GPUs: chunks and micro-batches differ in size, and with segments of fixed size
the memory between them is lost. It must be set before torch uses CUDA."""


def resolve_device(name: str) -> torch.device:
    """Returns the device of a name; ``auto`` is CUDA where available, else the CPU. A CUDA device has an index.

    Raises:
        ConfigError: the name is not valid, or there is no such CUDA device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"model.device = {name!r}", expected="auto, cpu, cuda or cuda:N") from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"model.device = {name!r} but no CUDA device ({_visible()})", fix='use "auto"')
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        raise ConfigError(
            f"model.device = {name!r} but {count} CUDA device(s) in this process ({_visible()})",
            fix='use "auto", and Ray\'s requests (num_gpus) to choose GPUs',
        )
    return torch.device("cuda", index)


def replay_devices(config: RunConfig) -> list[torch.device]:
    """Returns the devices of a replay worker: ``model.device``, or ``replay.num_gpus`` GPUs when that is 2 or more.

    Raises:
        ConfigError: this process does not have these devices.
    """
    import torch

    first, wanted = resolve_device(config.model.device), int(config.replay.num_gpus)
    if first.type != "cuda" or wanted < 2:
        return [first]
    if torch.cuda.device_count() < wanted:
        raise ConfigError(
            f"replay.num_gpus = {wanted} but {torch.cuda.device_count()} CUDA devices in this process",
            fix="set replay.workers = 1 or more, so that Ray gives each worker its own, or lower it",
        )
    return [torch.device("cuda", index) for index in range(wanted)]


def choose_kernels(device: torch.device) -> None:
    """Chooses torch's kernels in a process that trains or replays on ``device``; nothing changes on a CPU.

    cuDNN's attention builds a plan for every new shape, which takes up to a second, and shapes are new all the time
    here: completions differ in length.
    """
    if device.type == "cuda":
        import torch

        torch.backends.cuda.enable_cudnn_sdp(False)


def _visible() -> str:
    return f"CUDA_VISIBLE_DEVICES: {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}"
