"""Number of NVIDIA GPUs that a process can use, without importing torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

OTHER_DRIVERS = ("dxg", "kfd", "nvhost-gpu", "nvgpu")
"""Entries of /dev of drivers that give torch CUDA devices without /dev/nvidia0: WSL, AMD, Jetson."""


def visible_gpus(devices: Path = Path("/dev")) -> int | None:
    """Returns the number of GPUs, restricted by CUDA_VISIBLE_DEVICES; None when it is not known.

    Args:
        devices: folder of the device files.
    """
    if any((devices / name).exists() for name in OTHER_DRIVERS):
        return None
    present = sum(bool(re.fullmatch(r"nvidia\d+", path.name)) for path in devices.glob("nvidia*"))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return present
    names = [name.strip() for name in chosen.split(",")]
    usable = next((index for index, name in enumerate(names) if not name or name.startswith("-")), len(names))
    # A name that begins with MIG is a part of a GPU, of which one GPU has several.
    return usable if any(name.startswith("MIG") for name in names) else min(usable, present)
