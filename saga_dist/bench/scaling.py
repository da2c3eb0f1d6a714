"""Scaling bench: throughput of the real coordinator and pool with 1 to 64 workers that replay recorded latencies.

Workers sleep for the time that vLLM took for a group of the built-in birds, scaled to a mean of half a second. All else
is that of a run: leases, order, metrics, ledger and recordings. The alternative distributes the pairs of each step
evenly over the workers, and waits for all of them. Efficiency is the throughput of n workers, divided by n and by the
throughput of one worker. The latencies were recorded with ``python -m saga_dist.bench.latencies``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from importlib.resources import files
from typing import Any

from saga_dist.bench.common import BenchRow, Report, Size, less_is_better, more_is_better
from saga_dist.config import RunConfig, parse_config
from saga_dist.runtime.ray.batch_sleeper import BatchSleeperAdapter
from saga_dist.runtime.ray.scaling_bench import SimulatedAdapter, SleeperAdapter, TimedRun, split_evenly, train
from saga_dist.runtime.ray.session import RaySession

MEAN_S = 0.5
"""Mean latency of a group after scaling, seconds."""
PAIRS_PER_WORKER = 4
"""Pairs per worker and step."""
EFFICIENCY_BAR, IDLE_BAR, RATE_BAR = 0.95, 0.05, 500.0
"""Smallest efficiency, largest idle share of the learner, and smallest groups per second without latency."""
WORKERS = {Size.TINY: (1, 2), Size.QUICK: (1, 4, 16), Size.FULL: (1, 4, 16, 64)}
"""Numbers of workers, by size of the bench."""
SIMULATED = {Size.TINY: 8, Size.QUICK: 256, Size.FULL: 1024}
"""Numbers of simulated workers, which have no processes, by size of the bench."""
STEPS = {Size.TINY: 3, Size.QUICK: 8, Size.FULL: 12}
"""Optimizer steps of each run, by size of the bench."""
CONTRIBUTION = 0.25
"""Share of groups that contribute in steps of several micro-batches."""
MICRO_BATCHES: dict[int, float | None] = {4: 1.5, 8: None}
"""Pairs per micro-batch and contributing groups per step of 8 workers, to the smallest ratio of the steps per minute
with and without the keys of ``ON_OFF``; None without a bar."""
GROUPS_IN_FLIGHT = 2
"""Groups that a worker generates at the same time in steps of several micro-batches."""
ON_OFF: dict[str, tuple[bool, bool]] = {
    "early_start": (True, False),
    "continuous_feeding": (True, False),
}
"""Keys of [rollout] that keep workers busy in steps of several micro-batches, each with its values for on and off."""


def run(size: Size) -> Report:
    """Runs the bench.

    Returns:
        Groups per second of both sides, idle share of a busy learner, and groups per second without latency, with real
        and with simulated workers, which show the limit of the coordinator and the pool.
    """
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
            ours = train(config, adapter(latency_scale), update_s=0.0).groups_per_s
            other = split_evenly(config, adapter(latency_scale))
            ours_of_one = ours_of_one or ours
            efficiency = ours / (workers * ours_of_one)
            rows.append(more_is_better(f"{workers} workers", ours, other, "groups/s", equal=True))
            rows.append(_alone(f"{workers} workers: efficiency", efficiency, "", EFFICIENCY_BAR, more=True))
        # 8 workers generate a step's 8 groups in half of the update's time on average. Prefetched one step ahead, the
        # slowest group of a step must be finished within one update, which the longest latencies are not; two steps
        # ahead, within two updates.
        for staleness, bar in ((1, None), (2, IDLE_BAR)):
            busy = _config(8, 8, STEPS[size], max_staleness=staleness)
            idle = train(busy, adapter(latency_scale), update_s=2 * mean_s).mean("learner/idle_share", skip=2)
            rows.append(_alone(f"learner idle, {staleness} ahead", idle, "share", bar, more=False))
        for pairs in list(MICRO_BATCHES)[: 1 if size is Size.TINY else None]:
            rows += _micro_batch_rows(size, pairs, trace["seconds"], latency_scale, update_s=mean_s)
        top = WORKERS[size][-1]
        rate = train(_config(top, PAIRS_PER_WORKER * top, STEPS[size]), adapter(0.0), update_s=0.0).groups_per_s
        rows.append(_alone(f"no latency, {top} workers", rate, "groups/s", RATE_BAR, more=True))
    many = SIMULATED[size]
    with closing(SimulatedAdapter(trace["seconds"], 0.0)) as simulated:
        config = _config(many, PAIRS_PER_WORKER * many, STEPS[Size.TINY])
        rate = train(config, simulated, update_s=0.0).groups_per_s
    rows.append(_alone(f"no latency, {many:,} simulated workers", rate, "groups/s", None, more=True))
    return Report(
        bench="scaling",
        alternative="each step dealt out evenly, then waited for",
        rows=tuple(rows),
        notes=(
            f"latencies of {len(trace['seconds'])} groups, {trace['engine']}, scaled to a mean of {mean_s:g} s",
            f"one version ahead unless stated otherwise, {PAIRS_PER_WORKER} pairs a worker and step, one group a lease",
            f"learner idle: 8 workers, a step of 8 groups and {2 * mean_s:g} s of update; the slowest group takes "
            f"{max(trace['seconds']) * latency_scale:.1f} s",
            f"micro-batches: 8 workers of {GROUPS_IN_FLIGHT} groups at the same time, no staleness, {mean_s:g} s of "
            f"update; a step takes micro-batches of that many pairs until as many groups contribute, as "
            f"{CONTRIBUTION:.0%} do; against the same run without " + " and ".join(f"rollout.{key}" for key in ON_OFF),
            "simulated workers are no processes: they show what one coordinator and pool can handle, not what Ray can",
        ),
    )


def _micro_batch_rows(
    size: Size, pairs: int, latencies: Sequence[float], scale: float, *, update_s: float
) -> list[BenchRow]:
    """Returns steps per minute and idle shares of synchronous steps of several micro-batches, against those without.

    The keys of ``ON_OFF`` make the difference, and both sides must train to the same weights.
    """

    def side(number: int) -> TimedRun:
        keys: dict[str, Any] = {key: values[number] for key, values in ON_OFF.items()}
        keys |= {"max_staleness": 0, "max_micro_batches": 32, "groups_per_lease": GROUPS_IN_FLIGHT}
        config = _config(8, pairs, STEPS[size], **keys)
        fed = config.rollout.continuous_feeding
        adapter = BatchSleeperAdapter(latencies, scale, contribution=CONTRIBUTION, fed=fed)
        return train(config, adapter, update_s=update_s)

    on, off = side(0), side(1)
    equal = [row["weights/norm"] for row in on.steps] == [row["weights/norm"] for row in off.steps]
    detail = {name: on.mean(f"rollout/{name}") for name in ("groups", "early_groups", "cancelled_groups")}
    case, bar = f"micro-batches of {pairs}", MICRO_BATCHES[pairs]
    rate = more_is_better(case, on.steps_per_min, off.steps_per_min, "steps/min", equal=equal, bar=bar, detail=detail)
    idle = (
        less_is_better(f"{case}, {who} idle", on.mean(metric), off.mean(metric), "share", equal=equal)
        for who, metric in (("learner", "learner/idle_share"), ("rollout", "rollout_pool/idle_share"))
    )
    return [rate, *idle]


def _config(workers: int, pairs: int, steps: int, *, max_staleness: int = 1, **rollout: Any) -> RunConfig:
    """Returns a configuration whose steps take ``pairs`` contributing groups from micro-batches of as many pairs.

    Args:
        workers: rollout workers.
        pairs: pairs per micro-batch.
        steps: optimizer steps.
        max_staleness: steps that rollouts may run ahead.
        rollout: further keys of [rollout]; by default a step has one micro-batch.
    """
    return parse_config(
        {
            "run": {"steps": steps},
            "data": {"layout": "birds", "image_size": 80, "batch_size": max(4, pairs), "images_per_class": 2}
            | {"birds": {"train_classes": max(128, pairs // 2)}},
            "rollout": {
                "workers": workers,
                "num_cpus": 0.0,  # the workers sleep
                "pairs_per_batch": pairs,
                "group_size": 2,
                "contributing_groups": pairs,
                "groups_per_lease": 1,
                "max_micro_batches": 1,
                "max_staleness": max_staleness,
                "max_log_prob_gap": 1e9,
                **rollout,
            },
            "runtime": {"local_cpus": 2, "learner_num_cpus": 0.0, "object_store_mb": 200},
            "checkpoint": {"every_steps": steps},
            "evaluation": {"every_steps": steps},
            "logging": {"tensorboard": False},
        },
        where="bench scaling",
    )


def _alone(case: str, value: float, unit: str, bar: float | None, *, more: bool) -> BenchRow:
    """Returns a row with a bar and without an alternative."""
    met = None if bar is None else (value >= bar if more else value < bar)
    return BenchRow(case, value, None, unit, None, bar, met, equal=True)
