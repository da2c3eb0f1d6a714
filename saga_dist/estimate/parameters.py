"""Number of parameters of a part of the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Number of parameters of a part of the model."""

    params: int
    """Number of scalar parameters."""
    tensors: int
    """Number of parameter tensors."""

    @classmethod
    def of(cls, module: nn.Module) -> ParameterCount:
        """Returns the size of a module on any device; a shared tensor counts once."""
        parameters = list(module.parameters())
        return cls(sum(parameter.numel() for parameter in parameters), len(parameters))
