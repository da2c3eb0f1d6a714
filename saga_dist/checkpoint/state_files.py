"""Tensors and optimizer state in safetensors and JSON files: bit-exact and without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from saga_dist.errors import CheckpointError
from saga_dist.utils.atomic_io import crash_point
from saga_dist.utils.output_files import write_file, write_tensors


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes tensors as safetensors, bit-exact; tensors that share memory are written as separate copies.

    Args:
        path: file to write.
        tensors: tensors by name, of any shape, any dtype that safetensors supports, on any device.

    Raises:
        OutputError: the disk is full or not writable.
    """
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    write_tensors(path, plain, metadata={"format": "pt"})
    crash_point("written", path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a safetensors file by name, on the CPU.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the tensors ({_line(error)})", where=str(path)) from error


def save_optimizer(folder: Path, optimizer: torch.optim.Optimizer, name: str = "optimizer") -> None:
    """Writes the optimizer's state, bit-exact: tensors to ``<name>.safetensors``, numbers to ``<name>.json``.

    Args:
        folder: existing folder to write to.
        optimizer: optimizer whose state is written.
        name: file name without suffix.

    Raises:
        OutputError: the disk is full or not writable.
    """
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            (tensors if isinstance(value, torch.Tensor) else numbers)[f"{index}.{key}"] = value
    save_tensors(folder / f"{name}.safetensors", tensors)
    text = json.dumps({"param_groups": state["param_groups"], "numbers": numbers}, indent=1)
    file = folder / f"{name}.json"
    write_file(file, text)
    crash_point("written", file)


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer, name: str = "optimizer") -> None:
    """Loads the state written by ``save_optimizer`` into an optimizer over the same parameters.

    Args:
        folder: folder with the two files.
        optimizer: optimizer to load the state into; its groups must have the saved numbers of parameters.
        name: file name without suffix.

    Raises:
        CheckpointError: the files are damaged, or belong to other parameters or groups.
    """
    tensors = load_tensors(folder / f"{name}.safetensors")
    file = folder / f"{name}.json"
    try:
        saved = json.loads(file.read_text("utf-8"))
        groups, numbers = saved["param_groups"], saved["numbers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read the optimizer state ({_line(error)})", where=str(file)) from error
    sizes, own = ([len(group["params"]) for group in part] for part in (groups, optimizer.param_groups))
    if sizes != own:
        raise CheckpointError(
            f"parameter groups of {sizes} tensors", where=str(file), expected=f"{own}, as in this run"
        )
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*tensors.items(), *numbers.items()):
        index, entry = key.split(".", 1)
        state.setdefault(int(index), {})[entry] = value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in state.items():
        for entry, value in entries.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameters[index].shape:
                raise CheckpointError(
                    f"{entry} of parameter {index} has shape {tuple(value.shape)}",
                    where=str(folder / f"{name}.safetensors"),
                    expected=f"{tuple(parameters[index].shape)}, as in this run",
                )
    optimizer.load_state_dict({"state": state, "param_groups": [_with_tuples(group) for group in groups]})


def _with_tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a parameter group read from JSON with lists turned back into tuples, which torch uses e.g. for betas."""
    return {key: tuple(value) if isinstance(value, list) and key != "params" else value for key, value in group.items()}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
