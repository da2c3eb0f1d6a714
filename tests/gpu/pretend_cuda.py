"""A pretended CUDA device: tensors that say ``cuda:0``, compute on the CPU, and refuse to meet tensors of the CPU.

A program that forgets to move a tensor works on a CPU and fails on a GPU. With these tensors it fails here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from gpu.recorded_flash import RecordedFlash
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from saga_dist.models.families import attention_backends, padded_attention

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ATEN = torch.ops.aten
COPIES = (ATEN.copy_.default, ATEN._to_copy.default)
"""The only operators that may be given tensors of both devices."""
INDEXED = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default)
"""Operators whose second argument, the indices, may be on the CPU."""
CHOICE_OF_ATTENTION, PLAIN_ATTENTION = ATEN._fused_sdp_choice.default, 0


class CudaTensor(torch.Tensor):
    """A tensor that says that it is on ``cuda:0``; its values are in a tensor of the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> CudaTensor:
        # To the C++ side it is on the CPU, because autograd asks a real device for its streams.
        made: CudaTensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=CPU, requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(value, CausalBias) for value in kwargs.values()):
            return NotImplemented  # the mask calls the kernel itself
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.numpy:
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            if func is torch._C._nn.pad_sequence:  # which makes its result on the device that the C++ side knows
                longest = max(map(len, args[0]))
                return torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in args[0]])
            if func is torch.Tensor.tolist:
                return args[0].inner.tolist()
            if func is torch.Tensor.to and len(args) > 1 and isinstance(args[1], CudaTensor):
                return ATEN._to_copy.default(args[0], device=CUDA, dtype=args[1].dtype)
            if func is torch.Tensor.cpu or (func is torch.Tensor.to and _goes_to_cpu(args[1:], kwargs)):
                dtype = next((value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.dtype)), None)
                return ATEN._to_copy.default(args[0], device=CPU, dtype=dtype or args[0].dtype)
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Runs every operator, so that a new tensor on ``cuda:0`` becomes a ``CudaTensor``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Event:
    """An event of a device on which everything is done at once."""

    def record(self) -> None:
        return

    def synchronize(self) -> None:
        return


def _goes_to_cpu(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """True when arguments of ``Tensor.to`` name the CPU, or a tensor that is there."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.device | str):
            return torch.device(value).type == "cpu"
        if isinstance(value, torch.Tensor):
            return not isinstance(value, CudaTensor)
    return False


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Runs one operator on the CPU and wraps its results where they are on the pretended device."""
    checked = (args[0], *args[2:]) if func in INDEXED else args
    given = [value for value in tree_leaves((checked, kwargs)) if isinstance(value, torch.Tensor)]
    own = [value for value in given if isinstance(value, CudaTensor)]
    # The C++ side takes the device for the CPU where autograd makes zeros, and gradients of another dtype.
    in_backward = torch._C._current_graph_task_id() != -1
    others = [value for value in given if not isinstance(value, CudaTensor) and value.dim()]
    others = [value for value in others if not in_backward or value.any()]
    if own and others and func not in COPIES:
        raise AssertionError(f"{func} was given tensors of cuda:0 and of the CPU")
    if func is CHOICE_OF_ATTENTION:
        return PLAIN_ATTENTION
    on_cuda = bool(own)
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    if kwargs.get("device") is not None:
        device = torch.device(kwargs["device"])
        # A new tensor like one of ours is asked for on the device that the C++ side knows, too.
        on_cuda = device.type == "cuda" or (bool(own) and (in_backward or func not in COPIES))
        kwargs = kwargs | {"device": CPU if on_cuda else device}
    elif func is ATEN.copy_.default:
        on_cuda = isinstance(args[0], CudaTensor)
    args, kwargs = tree_map(lambda value: value.inner if isinstance(value, CudaTensor) else value, (args, kwargs))
    result = func(*args, **kwargs)
    wrappers = {id(value.inner): value for value in own}  # an operator in place returns the tensor that it was given

    def found(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return wrappers[id(value)] if id(value) in wrappers else CudaTensor(value)

    return tree_map(found, result) if on_cuda else result


@contextmanager
def pretended_cuda() -> Iterator[RecordedFlash]:
    """Makes torch say that it has one GPU of a recent kind; yields the record of what the flash kernel is given."""
    flash, autocast = RecordedFlash(), torch.autocast

    def autocast_cuda(device_type: str, **settings: Any) -> torch.autocast:
        assert device_type in ("cuda", "cpu")
        return autocast("cpu", **settings)

    def lower_right(*size: int) -> CausalBias:
        with _disable_current_modes():  # torch cannot make this mask within a mode
            return causal_lower_right(*size)

    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda *_: (9, 0),
        "_lazy_init": lambda: None,
        "Event": _Event,
    }
    lifting = torch._C._only_lift_cpu_tensors()
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch, _Mode():
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, answer)
        patch.setattr(torch, "autocast", autocast_cuda)
        patch.setattr(padded_attention, "causal_lower_right", lower_right)
        patch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
        patch.setattr(attention_backends, "_varlen_flash", flash.forward)
        patch.setattr(attention_backends, "_varlen_flash_backward", flash.backward)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") then goes through the mode
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # Module.to then replaces the parameters
        try:
            yield flash
        finally:
            torch._C._set_only_lift_cpu_tensors(lifting)
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
