"""The run's metrics on the port where Prometheus finds a Ray node's."""

from __future__ import annotations

import time
from urllib.request import ProxyHandler, build_opener

import pytest
import ray

from saga_dist.runtime.ray.prometheus import RayGauges
from saga_dist.types import StepResult

pytestmark = pytest.mark.cluster


def test_the_last_value_is_exported(ray_cluster: dict[str, str]) -> None:
    gauges = RayGauges("my run")
    gauges.open(after_step=0)
    for step, reward in ((1, 0.25), (2, 0.75)):
        gauges.write(StepResult(step=step, metrics={"rollout/reward_mean": reward, "odd/nan": float("nan")}))
    (node,) = [one for one in ray.nodes() if one["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = ("ray_saga_dist_rollout_reward_mean", 'run="my run"')
    lines: list[str] = []
    deadline = time.monotonic() + 120  # Ray reports every few seconds
    while not lines and time.monotonic() < deadline:
        time.sleep(1)
        with build_opener(ProxyHandler({})).open(url, timeout=30) as answer:
            text = answer.read().decode()
        lines = [line for line in text.splitlines() if all(part in line for part in wanted)]
    assert [float(line.rsplit(" ", 1)[1]) for line in lines] == [0.75]
    gauges.close()
