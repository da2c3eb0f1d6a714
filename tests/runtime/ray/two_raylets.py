"""A node with two of three workers is taken away while tasks flow, and another one comes. Run by ``test_elastic``."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray_nodes import start_node

from saga_dist.config import RunConfig, parse_config
from saga_dist.runtime.ray.adapter import PoolConfig, Timeouts
from saga_dist.runtime.ray.adapters import RolloutAdapter
from saga_dist.runtime.ray.fake_workers import FakeLearner, fake_factories
from saga_dist.runtime.ray.fault_plan import FaultPlan
from saga_dist.runtime.ray.object_refs import put_tokens
from saga_dist.runtime.ray.pool import RayPool
from saga_dist.types import ImagePair, MicroBatch, RolloutTask, Sampling

NUM_GROUPS = 2000
STORE_BYTES = 100 * 1024**2


def main() -> None:
    head = {"num_cpus": 0, "resources": {"rollout": 1}, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = start_node(lambda: Cluster(initialize_head=True, head_node_args=head))
    node = add_node(cluster)
    ray.init(address=cluster.address, log_to_driver=False)
    tree = {
        "data": {"layout": "birds", "image_size": 80},
        "rollout": {"num_cpus": 0.0},
        "runtime": {"threads": 1, "pin_roles": True},
    }
    config = parse_config(tree, where="test")
    numbers = PoolConfig(3, 2, max_attempts=3, timeouts=Timeouts(start_s=200, lease_s=60, heartbeat_s=10))
    pool: Any = RayPool(RolloutAdapter(config, fake_factories(), lambda: ""), numbers)
    pool.start()
    wait_for_three(pool)
    here = ray.get_runtime_context().get_node_id()
    assert sum(info.node_id != here for info in pool.workers().values()) == 2

    sent = tasks(config)
    pool.submit(sent)
    found: list[Any] = []
    while len(found) < 100:
        found += pool.collect()
    cluster.remove_node(node, allow_graceful=False)
    while arrived := pool.collect():
        found += arrived
    assert sorted(item.pair.pair_id for item in found) == sorted(task.pair_id for task in sent)
    metrics = pool.metrics()
    assert metrics["replacements"] >= 2, metrics

    add_node(cluster)
    wait_for_three(pool)
    pool.close()
    ray.shutdown()
    cluster.shutdown()
    sys.stdout.write(f"{len(found)} groups, once each, {metrics['quarantined']:.0f} set aside\n")


def add_node(cluster: Any) -> Any:
    return start_node(lambda: cluster.add_node(num_cpus=0, resources={"rollout": 2}, object_store_memory=STORE_BYTES))


def wait_for_three(pool: Any) -> None:
    deadline = time.monotonic() + 200
    while len(pool.workers()) < 3:
        assert time.monotonic() < deadline, pool.status()
        time.sleep(0.1)


def tasks(config: RunConfig) -> list[RolloutTask]:
    pairs = tuple(ImagePair(f"p{index:04d}", index, index + 1, 0, index % 2) for index in range(NUM_GROUPS))
    batch = MicroBatch(0, 0, tuple(range(NUM_GROUPS + 1)), (0,) * (NUM_GROUPS + 1), 0, pairs)
    sampling = Sampling(num_completions=4, temperature=0.7, top_p=0.95, max_tokens=8, seed=1)
    plain = [
        RolloutTask(pair, tokens, sampling)
        for pair, tokens in zip(pairs, FakeLearner(config, FaultPlan()).encode(batch).handles, strict=True)
    ]
    return [replace(task, tokens=put_tokens(task.tokens)) for task in plain]


if __name__ == "__main__":
    main()
