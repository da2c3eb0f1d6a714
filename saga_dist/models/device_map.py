"""A frozen decoder over several devices, for backbones larger than one card: consecutive layers stay together.

    first device: embeddings, first layers ──► next device: next layers ──► … ──► first device: last norm, output layer

Hidden states, and what all layers share (mask, rotations), move at the borders; keys and values stay where their layer
is. Autograd moves gradients back the same way. One device works at a time: this buys room, not speed; speed comes from
further workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from saga_dist.errors import ModelError
from saga_dist.models.families.base import FrozenBackbone


def distribute_layers(backbone: FrozenBackbone, devices: Sequence[torch.device]) -> None:
    """Moves a backbone's decoder layers to ``devices`` in equal consecutive parts, and all the rest to the first.

    Args:
        backbone: loaded, on the host: it need never fit on one device.
        devices: from the first layers to the last.

    Raises:
        ModelError: fewer layers than devices.
    """
    layers = _decoder_layers(backbone)
    if len(layers) < len(devices):
        raise ModelError(f"{len(layers)} decoder layers for {len(devices)} GPUs", where="replay", fix="use fewer")
    homes: dict[nn.Module, torch.device] = {}
    for index, layer in enumerate(layers):
        device = devices[index * len(devices) // len(layers)]
        homes.update(dict.fromkeys(layer.modules(), device))
        layer.register_forward_pre_hook(_Mover(device).arguments, with_kwargs=True)
    for module in backbone.modules():
        _move_own_tensors(module, homes.get(module, devices[0]))
    layers[-1].register_forward_hook(_Mover(devices[0]).output)


def _decoder_layers(backbone: FrozenBackbone) -> nn.ModuleList:
    """The one list of the backbone that has as many modules as the decoder has layers."""
    lists = (module for module in backbone.modules() if isinstance(module, nn.ModuleList))
    return next(layers for layers in lists if len(layers) == backbone.num_layers)


def _move_own_tensors(module: nn.Module, device: torch.device) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.to(device), requires_grad=False))
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, buffer.to(device))


class _Mover:
    """Puts tensors on a device, in tuples too; everything else, a cache for example, is left alone."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(self._device)
        return tuple(map(self, value)) if type(value) is tuple else value

    def arguments(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Moves what goes into a layer."""
        return self(args), {name: self(value) for name, value in kwargs.items()}

    def output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Moves what comes out of the last layer."""
        return self(output)
