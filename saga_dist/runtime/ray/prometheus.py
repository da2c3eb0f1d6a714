"""The run's metrics for Prometheus, through the exporter that every Ray node has."""

from __future__ import annotations

import math
import re

from ray.util.metrics import Gauge

from saga_dist.types import StepResult

_NOT_ALLOWED = re.compile(r"[^a-zA-Z0-9_]")


class RayGauges:
    """One gauge per metric, e.g. ``ray_saga_dist_rollout_reward_mean`` with the label ``run``; a ``MetricSink``.

    Ray exports the gauges of this process (the driver's) on its node's metrics port.

    Args:
        run: value of the label.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def open(self, *, after_step: int) -> None:
        """Nothing to begin: gauges hold the present value only."""

    def write(self, result: StepResult) -> None:
        """Sets every gauge; a value that is not finite leaves its gauge as it was."""
        for name, value in {"step": float(result.step), **result.metrics}.items():
            if not math.isfinite(value):
                continue
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"saga_dist_{_NOT_ALLOWED.sub('_', name)}", name, tag_keys=("run",))
            self._gauges[name].set(float(value), tags={"run": self._run})

    def close(self) -> None:
        """Nothing to end: gauges go with the process."""
