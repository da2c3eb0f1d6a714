"""Low-rank updates (LoRA) of a tower's linear layers, by peft (extra ``lora``), and the merged weights.

Every linear layer W x becomes W x + (alpha / rank) B A x with W constant. B is zero at first, so that training starts
at the tower's own function. Saved encoders hold W + (alpha / rank) B A under the names of the plain tower: who loads
one needs neither peft nor this module.
"""

from __future__ import annotations

import torch
from torch import nn

from saga_dist.models.train_checks import check_peft

_ADAPTER = "default"
_BASE, _UPDATE = ".base_layer.", ".lora_"
"""Parts of peft's names for a wrapped layer's own tensors, and for those of its update."""


def add_lora(tower: nn.Module, *, rank: int, alpha: int, seed: int) -> None:
    """Adds a trainable update to every linear layer of a tower and makes all other parameters constant.

    Args:
        tower: vision tower, on any device, torch's meta device included.
        rank: rank of the updates.
        alpha: numerator of their factor ``alpha / rank``.
        seed: seed of A; the global random state is neither used nor changed.

    Raises:
        ConfigError: peft is not installed.
    """
    check_peft()
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in tower.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=linear)
    with torch.random.fork_rng(devices=[]):  # peft draws on the CPU, then moves what it drew to the layer's device
        torch.manual_seed(seed)
        inject_adapter_in_model(config, tower, adapter_name=_ADAPTER)


def merged_weights(tower: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the weights of a tower by name, each update added to the weight that it belongs to.

    Without ``add_lora`` it is the tower's own state dict.
    """
    state: dict[str, torch.Tensor] = tower.state_dict()
    if not any(_BASE in name for name in state):
        return state
    from peft.tuners.lora import Linear

    merged = {name.replace(_BASE, "."): tensor for name, tensor in state.items() if _UPDATE not in name}
    for name, layer in tower.named_modules():
        if isinstance(layer, Linear):
            merged[f"{name}.weight"] = merged[f"{name}.weight"] + layer.get_delta_weight(_ADAPTER).detach()
    return merged
