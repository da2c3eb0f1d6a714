"""Distributes the layers of a frozen decoder over several devices, for backbones larger than one GPU.

    first device: embeddings, first layers ──► next device: next layers ──► … ──► first device: last norm, output layer

Hidden states, and the inputs that all layers share (mask, rotations), are moved where the device changes; keys and
values stay on the device of their layer. Autograd moves gradients back the same way. The devices work one after the
other, so this gives memory and no speed; speed comes from further workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from saga_dist.errors import ModelError
from saga_dist.models.families.base import FrozenBackbone


def distribute_layers(backbone: FrozenBackbone, devices: Sequence[torch.device]) -> None:
    """Moves a backbone's decoder layers to ``devices`` in equal consecutive parts, and all other modules to the first.

    Args:
        backbone: backbone with its weights, on the host, so that it need not fit on one device.
        devices: devices in the order of the layers.

    Raises:
        ModelError: there are fewer layers than devices.
    """
    layers = _decoder_layers(backbone)
    if len(layers) < len(devices):
        raise ModelError(f"{len(layers)} decoder layers for {len(devices)} GPUs", where="replay", fix="use fewer")
    device_of: dict[nn.Module, torch.device] = {}
    for index, layer in enumerate(layers):
        device = devices[index * len(devices) // len(layers)]
        device_of.update(dict.fromkeys(layer.modules(), device))
        layer.register_forward_pre_hook(_Mover(device).arguments, with_kwargs=True)
    for module in backbone.modules():
        _move_own_tensors(module, device_of.get(module, devices[0]))
    layers[-1].register_forward_hook(_Mover(devices[0]).output)


def _decoder_layers(backbone: FrozenBackbone) -> nn.ModuleList:
    """Returns the decoder's layers: the first module list with as many modules as the decoder has layers."""
    lists = (module for module in backbone.modules() if isinstance(module, nn.ModuleList))
    return next(layers for layers in lists if len(layers) == backbone.num_layers)


def _move_own_tensors(module: nn.Module, device: torch.device) -> None:
    """Moves parameters and buffers of a module, without those of its submodules, to a device."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.to(device), requires_grad=False))
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, buffer.to(device))


class _Mover:
    """Moves tensors, and tensors in tuples, to a device; other values, such as a cache, are passed on unchanged."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(self._device)
        return tuple(map(self, value)) if type(value) is tuple else value

    def arguments(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the inputs of a layer, moved to the device."""
        return self(args), {name: self(value) for name, value in kwargs.items()}

    def output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Returns the output of the last layer, moved to the device."""
        return self(output)
