"""Sections ``memory`` and ``memory_fixed_segments``: the longest group, and what groups of all lengths leave reserved.

The two differ in torch's setting ``expandable_segments`` alone, which is read when a process first uses the GPU.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from saga_dist.diagnostics.gpu_check.measuring import measured
from saga_dist.diagnostics.gpu_check.random_model import random_model
from saga_dist.runtime.devices import ALLOCATOR_ENVIRONMENT

SHORTEST_SHARE = 0.4
"""Smallest length of a completion in the ragged groups, as a share of the longest."""


def measure(size_name: str) -> dict[str, Any]:
    """Returns peak bytes of the longest group, and of a row of groups of random lengths with the longest at its end."""
    with random_model(size_name) as model:
        backbone = model.backbone()
        worker, tokens, size = model.replay_worker(backbone), model.tokens(), model.size
        group_size, rng = len(size.lengths), np.random.default_rng(0)
        longest = model.task(tokens, (size.longest,) * group_size)
        alone = measured(model.device, lambda: worker.replay(longest, tokens))
        shortest = int(SHORTEST_SHARE * size.longest)
        ragged = [
            model.task(
                tokens, tuple(rng.integers(shortest, size.longest, group_size, endpoint=True).tolist()), seed=seed
            )
            for seed in range(size.ragged_groups)
        ]
        row = measured(model.device, lambda: [worker.replay(task, tokens).loss for task in (*ragged, longest)])
        return {
            "allocator": os.environ.get(next(iter(ALLOCATOR_ENVIRONMENT)), "default"),
            "weights_bytes": sum(weight.nbytes for weight in backbone.parameters()),
            "longest_s": alone.seconds,
            "longest_peak_bytes": alone.peak_bytes,
            "longest_working_bytes": alone.working_bytes,
            "groups": len(ragged) + 1,
            "row_s": row.seconds,
            "row_peak_bytes": row.peak_bytes,
            "row_reserved_bytes": row.reserved_bytes,
        }
