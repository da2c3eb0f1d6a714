"""Putting checkpoint tensors into modules that were built without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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


def renamed(
    tensors: Iterable[tuple[str, torch.Tensor]], prefixes: Mapping[str, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors with the first fitting prefix of their names replaced; other names stay."""
    for name, tensor in tensors:
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        yield prefixes.get(prefix, "") + name.removeprefix(prefix), tensor


def fill(module: nn.Module, tensors: Iterable[tuple[str, torch.Tensor]], *, where: str) -> None:
    """Copies tensors into a module one by one, casting to its types; every weight must come, and nothing else.

    Raises:
        ModelError: a weight is missing, unknown, or of another shape; the module is then half filled.
    """
    own = module.state_dict()
    missing = set(own)
    for name, tensor in tensors:
        if name not in own:
            raise ModelError(f"has an unknown tensor {name}", where=where, expected="the weights of its config.json")
        if tensor.shape != own[name].shape:
            raise ModelError(
                f"tensor {name} has shape {tuple(tensor.shape)}", where=where, expected=f"{tuple(own[name].shape)}"
            )
        with torch.no_grad():
            own[name].copy_(tensor)
        missing.discard(name)
    if missing:
        raise ModelError(
            f"misses tensor {min(missing)} ({len(missing)} in all)", where=where, expected="all weights of the family"
        )
