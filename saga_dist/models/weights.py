"""Tensors of modules: loads those of a checkpoint into modules that were built without weights, and their digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import nn

from saga_dist.errors import ModelError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def build_empty(build: Callable[[], ModuleT], *, device: str | torch.device) -> ModuleT:
    """Returns a module with uninitialised memory on ``device``; to initialise 8 billion weights would take minutes.

    Buffers that are computed, not loaded, are uninitialised too; the caller must compute them again.

    Args:
        build: constructor of the module.
        device: device of parameters and buffers.
    """
    with torch.device("meta"):
        module = build()
    return module.to_empty(device=device)


def renamed(
    tensors: Iterable[tuple[str, torch.Tensor]], prefixes: Mapping[str, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors with the prefix of their names replaced; names without such a prefix do not change.

    Args:
        tensors: names and tensors.
        prefixes: replacement of each prefix; the first one that fits is used.
    """
    for name, tensor in tensors:
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        yield prefixes.get(prefix, "") + name.removeprefix(prefix), tensor


def fill(module: nn.Module, tensors: Iterable[tuple[str, torch.Tensor]], *, where: str) -> None:
    """Copies tensors into the parameters and buffers of a module, converted to their dtypes.

    Args:
        module: the module; every entry of its state dict must be among the tensors.
        tensors: names and tensors; nothing else may be among them.
        where: source of the tensors, for the error.

    Raises:
        ModelError: a tensor is missing or unknown, or has another shape; the module is then partly loaded.
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
