"""The devices of the tests here: the CPU, a pretended GPU, and a real one in tests marked ``gpu``.

A test body that holds on all three says on a machine without a GPU that its logic is right, and on one with a GPU that
the kernels are.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gpu.pretend_cuda import CPU, CUDA, pretended_cuda

REAL = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["cpu", "pretended", REAL])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device of a test."""
    yield from _device(request.param)


@pytest.fixture(params=["cpu", REAL])
def real_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The device of a test that uses a library which knows real devices only."""
    yield from _device(request.param)


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
