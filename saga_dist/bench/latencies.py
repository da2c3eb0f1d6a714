"""Records vLLM's seconds per group on the built-in birds: ``python -m saga_dist.bench.latencies [FILE]``.

The groups are generated one at a time, as by a worker with ``rollout.groups_per_lease = 1``. The first groups, which
warm up the engine, are left out.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from saga_dist.config import load_config
from saga_dist.data.sampling import training_sampler
from saga_dist.runtime.build import build_learner, build_rollout_worker
from saga_dist.standin import DEMO_CONFIG
from saga_dist.types import RolloutTask, Sampling
from saga_dist.utils.atomic_io import write_atomic
from saga_dist.utils.pair_ids import random_key
from saga_dist.utils.rng import counter_seed

WARM_UP, GROUPS = 8, 192
"""Groups that are left out, and groups that are recorded."""


def record() -> dict[str, object]:
    """Returns the seconds of each group in order (``seconds``) and a description of the engine (``engine``)."""
    config = load_config(DEMO_CONFIG, ["runtime.kind=serial"])
    learner, worker = build_learner(config), build_rollout_worker(config)
    settings = config.rollout
    sampler = training_sampler(config, learner.labels("train"))
    seconds: list[float] = []
    step = 0
    while len(seconds) < WARM_UP + GROUPS:
        batch = sampler.micro_batch(step, 0, settings.pairs_per_batch)
        for pair, tokens in zip(batch.pairs, learner.encode_no_grad(batch).handles, strict=True):
            seed = counter_seed(0, "sampling", random_key(pair.pair_id))
            sampling = Sampling(settings.group_size, settings.temperature, settings.top_p, settings.max_tokens, seed)
            started = time.perf_counter()
            worker.rollout([RolloutTask(pair, tokens, sampling)], [tokens])
            seconds.append(round(time.perf_counter() - started, 5))
        step += 1
    worker.close()
    engine = f"vLLM on the built-in birds, groups of {settings.group_size}"
    return {"engine": engine, "seconds": seconds[WARM_UP : WARM_UP + GROUPS]}


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("latencies.json")
    write_atomic(target, (json.dumps(record()) + "\n").encode())
