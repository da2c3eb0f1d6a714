"""Section ``replay``: one group with each program of attention; first visit of its shapes, and second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel

from saga_dist.diagnostics.gpu_check.measuring import measured
from saga_dist.diagnostics.gpu_check.random_model import RandomModel, random_model
from saga_dist.estimate.operations import group_operations
from saga_dist.models.families.decoder import DecoderBackbone
from saga_dist.utils.registry import one_line
from saga_dist.workers.replay import ReplayWorker


def measure(size_name: str) -> dict[str, Any]:
    """Returns seconds, TFLOP/s and working memory of each program, and the rate of the program that runs use.

    A program that this device does not run is named with the reason, unless it is the one that runs use.
    """
    with random_model(size_name) as model:
        backbone = model.backbone()
        worker = model.replay_worker(backbone)
        operations = group_operations(model.shape.decoder, model.token_counts, len(model.size.lengths))
        total = operations.replay(stale=False)
        chosen = "packed" if backbone.supports_packing else "padded"
        programs: dict[str, Any] = {chosen: _visits(model, worker, total)}
        for name, program in OTHERS.items():
            if name not in programs:
                with program(backbone):
                    programs[name] = _visits_if_possible(model, worker, total)
        return {
            "program": chosen,
            "flops": total,
            "flops_per_s": total / programs[chosen]["second_s"],
            "weights_bytes": sum(weight.nbytes for weight in backbone.parameters()),
            **programs,
        }


@contextmanager
def padded(backbone: DecoderBackbone) -> Iterator[None]:
    """Pads groups within the context, as where there is no kernel of packed attention."""
    backbone.packs = False
    try:
        yield
    finally:
        backbone.packs = True


@contextmanager
def _padded_on_cudnn(backbone: DecoderBackbone) -> Iterator[None]:
    """Pads groups within the context and leaves torch cuDNN's attention alone, which runs turn off."""
    with padded(backbone), sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        yield


OTHERS: dict[str, Callable[[DecoderBackbone], AbstractContextManager[None]]] = {
    "padded": padded,
    "padded_cudnn": _padded_on_cudnn,
}
"""Programs to compare with the one that runs use."""


def _visits_if_possible(model: RandomModel, worker: ReplayWorker, operations: float) -> dict[str, Any]:
    """Returns ``_visits``, or the reason why the device does not run this program."""
    try:
        return _visits(model, worker, operations)
    except RuntimeError as error:  # no such kernel here, or no memory for it
        reason = one_line(error)
    return {"not_run": reason}


def _visits(model: RandomModel, worker: ReplayWorker, operations: float) -> dict[str, Any]:
    """Returns seconds of the first and the second replay of one group, and rate and memory of the second.

    A smaller group runs before them, so that loading kernels belongs to neither.
    """
    tokens = model.tokens()
    small = model.task(tokens, tuple(length // 2 for length in model.size.lengths[:2]))
    worker.replay(small, tokens)
    task = model.task(tokens)
    first, second = (measured(model.device, lambda: worker.replay(task, tokens)) for _ in range(2))
    return {
        "first_s": first.seconds,
        "second_s": second.seconds,
        "tflops_per_s": operations / second.seconds / 1e12,
        "working_bytes": second.working_bytes,
    }
