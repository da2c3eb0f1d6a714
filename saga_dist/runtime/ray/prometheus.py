"""Export of a run's metrics to Prometheus, through the metrics exporter of the Ray node."""

from __future__ import annotations

import math
import re

from ray.util.metrics import Gauge

from saga_dist.metrics.group_words import GroupSample
from saga_dist.types import StepResult

_NOT_ALLOWED = re.compile(r"[^a-zA-Z0-9_]")


class RayGauges:
    """Metric sink with one gauge per metric, e.g. ``ray_saga_dist_rollout_reward_mean``, with the label ``run``.

    Ray exports the gauges of this process, the driver, on the metrics port of its node.

    Args:
        run: value of the label ``run``.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def open(self, *, after_step: int) -> None:
        """Does nothing, because gauges have only their present value."""

    def write(self, result: StepResult) -> None:
        """Sets the gauge of every metric; a gauge keeps its value when the new one is not finite."""
        for name, value in {"step": float(result.step), **result.metrics}.items():
            if not math.isfinite(value):
                continue
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"saga_dist_{_NOT_ALLOWED.sub('_', name)}", name, tag_keys=("run",))
            self._gauges[name].set(float(value), tags={"run": self._run})

    def write_group(self, sample: GroupSample) -> None:
        """Does nothing, because gauges are numbers."""

    def close(self) -> None:
        """Does nothing, because gauges end with the process."""
