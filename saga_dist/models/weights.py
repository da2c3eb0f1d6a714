"""Putting checkpoint tensors into modules that were built without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from saga_dist.errors import ModelError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def build_empty(build: Callable[[], ModuleT], *, device: str | torch.device) -> ModuleT:
    """Returns a module with memory on ``device`` and no values in it: drawing 8 billion random weights takes minutes.

    Buffers that are computed rather than loaded have no values either; the caller makes them again.
    """
    with torch.device("meta"):
        module = build()
    return module.to_empty(device=device)


def strip(tensors: Mapping[str, torch.Tensor], prefixes: Sequence[str]) -> dict[str, torch.Tensor]:
    """Returns the tensors with the first fitting prefix taken off their names; other names stay."""
    stripped = {}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        stripped[name.removeprefix(prefix)] = tensor
    return stripped


def fill(module: nn.Module, tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Copies tensors into a module, casting to its types; every weight must be there, and nothing else.

    Raises:
        ModelError: a weight is missing, unknown, or of another shape.
    """
    own = module.state_dict()
    missing, unknown = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    if missing or unknown:
        kind, names = ("misses", missing) if missing else ("has an unknown", unknown)
        raise ModelError(
            f"{kind} tensor {min(names)} ({len(names)} in all)", where=where, expected="all weights of the family"
        )
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            raise ModelError(
                f"tensor {name} has shape {tuple(tensors[name].shape)}", where=where, expected=f"{tuple(tensor.shape)}"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
