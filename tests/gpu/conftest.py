"""The devices of the tests here: the CPU, a pretended GPU, and a real one in tests marked ``gpu``.

A test body that holds on all three says on a machine without a GPU that its logic is right, and on one with a GPU that
the kernels are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gpu.pretend_cuda import CPU, CUDA, pretended_cuda

REAL = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["cpu", "pretended", REAL])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device of a test."""
    yield from _device(request.param)


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.slow), "pretended", REAL])
def busy_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device of a test that takes long: the pretended GPU computes on the CPU as well."""
    yield from _device(request.param)


@pytest.fixture(params=["cpu", REAL])
def real_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device of a test that uses a library which knows real devices only."""
    yield from _device(request.param)


@pytest.fixture
def auto_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``auto`` the device of the test, which is the CPU for a test without one, also on a machine with a GPU."""
    named = [name for name in ("device", "busy_device", "real_device") if name in request.fixturenames]
    if not named or request.getfixturevalue(named[0]).type == "cpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def cuda_counters(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Where torch has no CUDA, its counters of memory answer: 3 bytes now, 10 at most, 16 reserved."""
    called: dict[str, Any] = {"synchronize": 0, "reset_peak_memory_stats": 0}

    def count(name: str) -> None:
        called[name] += 1

    if not torch.backends.cuda.is_built():
        for name in called:
            monkeypatch.setattr(torch.cuda, name, lambda device, name=name: count(name))
        for name, value in (("memory_allocated", 3), ("max_memory_allocated", 10), ("max_memory_reserved", 16)):
            monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    return called


def _device(name: str) -> Iterator[torch.device]:
    if name == "pretended":
        with pretended_cuda():
            yield CUDA
    elif name == "cpu":
        yield CPU
    else:
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.backends.cudnn, "allow_tf32", False)  # float32 means float32 in patch embeddings too
            yield CUDA
