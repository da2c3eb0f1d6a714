"""Does twice the workers mean twice the groups? The real coordinator and pool, 1 to 64 workers with recorded latencies.

Workers sleep as long as vLLM took for a group of the built-in birds, times a constant that brings the mean to half a
second; nothing else is made up: leases, order, metrics, ledger and recordings are a run's own. The alternative deals
each step's pairs out evenly and waits for everybody. Efficiency is the rate by the workers' number and the rate of one;
the trace was recorded with ``python -m saga_dist.bench.latencies``.
"""

from __future__ import annotations

import json
from contextlib import closing
from importlib.resources import files

from saga_dist.bench.common import BenchRow, Report, Size, more_is_better
from saga_dist.config import RunConfig, parse_config
from saga_dist.runtime.ray.scaling_bench import SimulatedAdapter, SleeperAdapter, split_evenly, train
from saga_dist.runtime.ray.session import RaySession

MEAN_S = 0.5
PAIRS_PER_WORKER = 4
EFFICIENCY_BAR, IDLE_BAR, RATE_BAR = 0.95, 0.05, 500.0
WORKERS = {Size.TINY: (1, 2), Size.QUICK: (1, 4, 16), Size.FULL: (1, 4, 16, 64)}
SIMULATED = {Size.TINY: 8, Size.QUICK: 256, Size.FULL: 1024}
"""Workers without processes."""
STEPS = {Size.TINY: 3, Size.QUICK: 8, Size.FULL: 12}


def run(size: Size) -> Report:
    """Returns groups per second of both ways, idle time of a busy learner, and what the coordinator can handle."""
    trace = json.loads((files("saga_dist.bench") / "latencies.json").read_text("utf-8"))
    mean_s = 0.05 if size is Size.TINY else MEAN_S
    latency_scale = mean_s / (sum(trace["seconds"]) / len(trace["seconds"]))

    def adapter(scale: float) -> SleeperAdapter:
        return SleeperAdapter(trace["seconds"], scale)

    rows: list[BenchRow] = []
    with closing(RaySession(_config(1, PAIRS_PER_WORKER, 1))):
        ours_of_one = 0.0
        for workers in WORKERS[size]:
            config = _config(workers, PAIRS_PER_WORKER * workers, STEPS[size])
            ours, _ = train(config, adapter(latency_scale), update_s=0.0)
            other = split_evenly(config, adapter(latency_scale))
            ours_of_one = ours_of_one or ours
            efficiency = ours / (workers * ours_of_one)
            rows.append(more_is_better(f"{workers} workers", ours, other, "groups/s", equal=True))
            rows.append(_alone(f"{workers} workers: efficiency", efficiency, "", EFFICIENCY_BAR, more=True))
        # 8 workers make a step's 8 groups in half of the learner's time. One version ahead, the slowest group of a step
        # must still come within one update, which the longest of the trace do not; two ahead, within two.
        for staleness, bar in ((1, None), (2, IDLE_BAR)):
            busy = _config(8, 8, STEPS[size], max_staleness=staleness)
            _, steps = train(busy, adapter(latency_scale), update_s=2 * mean_s)
            idle = [row["learner/idle_share"] for row in steps[2:]] or [steps[-1]["learner/idle_share"]]
            case = f"learner idle, {staleness} ahead"
            rows.append(_alone(case, sum(idle) / len(idle), "share", bar, more=False))
        top = WORKERS[size][-1]
        rate, _ = train(_config(top, PAIRS_PER_WORKER * top, STEPS[size]), adapter(0.0), update_s=0.0)
        rows.append(_alone(f"no latency, {top} workers", rate, "groups/s", RATE_BAR, more=True))
    many = SIMULATED[size]
    with closing(SimulatedAdapter(trace["seconds"], 0.0)) as simulated:
        rate, _ = train(_config(many, PAIRS_PER_WORKER * many, STEPS[Size.TINY]), simulated, update_s=0.0)
    rows.append(_alone(f"no latency, {many:,} simulated workers", rate, "groups/s", None, more=True))
    return Report(
        bench="scaling",
        alternative="each step dealt out evenly, then waited for",
        rows=tuple(rows),
        notes=(
            f"latencies of {len(trace['seconds'])} groups, {trace['engine']}, scaled to a mean of {mean_s:g} s",
            f"one version ahead where nothing is said, {PAIRS_PER_WORKER} pairs a worker and step, one group a lease",
            f"learner idle: 8 workers, a step of 8 groups and {2 * mean_s:g} s of update; the slowest group takes "
            f"{max(trace['seconds']) * latency_scale:.1f} s",
            "simulated workers are no processes: they show what one coordinator and pool can handle, not what Ray can",
        ),
    )


def _config(workers: int, pairs: int, steps: int, *, max_staleness: int = 1) -> RunConfig:
    return parse_config(
        {
            "run": {"steps": steps},
            "data": {"layout": "birds", "image_size": 80, "batch_size": max(4, pairs), "images_per_class": 2}
            | {"birds": {"train_classes": max(128, pairs // 2)}},
            "rollout": {
                "workers": workers,
                "num_cpus": 0.0,  # they sleep
                "pairs_per_batch": pairs,
                "group_size": 2,
                "contributing_groups": pairs,
                "max_micro_batches": 1,
                "max_staleness": max_staleness,
                "max_log_prob_gap": 1e9,
            },
            "runtime": {"local_cpus": 2, "learner_num_cpus": 0.0, "object_store_mb": 200},
            "checkpoint": {"every_steps": steps},
            "evaluation": {"every_steps": steps},
            "logging": {"tensorboard": False},
        },
        where="bench scaling",
    )


def _alone(case: str, value: float, unit: str, bar: float | None, *, more: bool) -> BenchRow:
    """A figure that nothing is compared with, only with a bar."""
    met = None if bar is None else (value >= bar if more else value < bar)
    return BenchRow(case, value, None, unit, None, bar, met, equal=True)
