"""Device and dtype of a loaded encoder, checked before its weights are read."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from saga_dist.errors import ConfigError

ModuleT = TypeVar("ModuleT", bound=nn.Module)
DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}
"""Dtypes that a tower may have, by name."""


def checked_device(device: str | torch.device) -> torch.device:
    """Returns a device on which this process can allocate memory.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise ValueError("it holds no values")
        torch.empty(1, device=found)
    # torch raises an AssertionError where it is built without CUDA, and a NotImplementedError for other backends.
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise _unusable(device, error) from error
    return found


def checked_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Returns the dtype of a name such as ``bfloat16``; None stays None.

    Raises:
        ConfigError: a tower cannot have it.
    """
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in DTYPES:
        raise ConfigError(f"dtype = {name!r}", expected=", ".join(DTYPES))
    return DTYPES.get(name)


def moved(module: ModuleT, device: torch.device) -> ModuleT:
    """Moves a module to a device and returns it.

    Raises:
        ConfigError: it does not fit there.
    """
    try:
        return module.to(device)
    except RuntimeError as error:
        raise _unusable(device, error) from error


def _unusable(device: object, error: Exception) -> ConfigError:
    lines = str(error).splitlines() or [type(error).__name__]
    return ConfigError(f"device = '{device}' cannot be used ({lines[0]})", expected="cpu, cuda or cuda:N")
