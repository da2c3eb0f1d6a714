"""Check of the device on which an encoder is to run."""

from __future__ import annotations

import torch

from saga_dist.errors import ConfigError


def require_device(device: str | torch.device) -> None:
    """Checks that tensors can be placed on a device, before weights are loaded for it.

    Args:
        device: torch device, e.g. ``cpu`` or ``cuda:1``.

    Raises:
        ConfigError: the name is wrong, there is no such device, or this build of torch has no support for it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a CPU build raises AssertionError for cuda
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"cannot be used ({reason})", where=f"--device {device}", expected="cpu, or cuda where there is a GPU"
        ) from error
