"""Converts an estimate into JSON values; the rates have the form that ``--measured`` reads."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from saga_dist.estimate.measure import MeasuredSteps
from saga_dist.estimate.memory import FLOAT32
from saga_dist.estimate.operations import encoder_backward, encoder_forward
from saga_dist.estimate.payloads import checkpoint_bytes, disk_bytes
from saga_dist.estimate.placement import DeviceUsage, kv_cache_capacity
from saga_dist.estimate.planner import Estimate
from saga_dist.estimate.ranges import Range
from saga_dist.estimate.rates import as_json as rates_as_json
from saga_dist.estimate.scaling import Plan, Saturation
from saga_dist.estimate.steps import StepTime


def as_json(estimate: Estimate, price: float | None, measured: MeasuredSteps | None = None) -> dict[str, Any]:
    """Returns the estimate as a dictionary; durations and costs also at the fast and slow ends of assumed rates.

    Args:
        estimate: the estimate.
        price: price of a GPU for an hour; None leaves out the costs.
        measured: means over the steps that were run for the rates; None when none were run.
    """
    plan_inputs = estimate.plan_inputs
    work, learner, rollout = plan_inputs.work, plan_inputs.work.learner, plan_inputs.work.rollout
    sampling = work.dynamic_sampling
    return {
        "model": {"name": work.shape.name, "source": work.shape.source},
        "device": asdict(plan_inputs.card),
        "inputs": {
            "prompt_tokens": work.token_counts.prompt,
            "completion_tokens": work.token_counts.completion,
            "completion_source": work.token_counts.completion_source,
            "contributing_share": sampling.contributing_share,
            "contributing_source": sampling.source,
            "train_classes": plan_inputs.data.train_classes,
        },
        "parameters": {
            "encoder": learner.tower.params,
            "pooler": learner.pooler.params,
            "proxies": learner.proxies.params,
            "backbone": work.shape.decoder.weights.params,
        },
        "bytes": {
            "trainable_weights": learner.trained_weights,
            "optimizer": learner.optimizer,
            "gradients": FLOAT32 * learner.trainable.params,
            "micro_batch": learner.open_micro_batches(1),
            "backbone": plan_inputs.replay.weights,
            "replay": plan_inputs.replay.working_set,
            "engine_weights": rollout.weights,
            "cache_token": rollout.kv_token_bytes,
            "cache_wanted": rollout.kv_cache_bytes,
            "pair_tokens": estimate.payloads.tokens,
            "pair_gradients": estimate.payloads.gradients,
            "object_store_step": estimate.payloads.step,
            "checkpoint": checkpoint_bytes(learner),
            "disk": disk_bytes(work.config, learner),
            "host": estimate.host,
        },
        "cache_tokens": kv_cache_capacity(work.config, rollout, plan_inputs.card),
        "devices": {str(count): [_device(device) for device in devices] for count, devices in estimate.devices.items()},
        "most_groups": estimate.max_groups,
        "operations": {
            "encoder_forward_image": encoder_forward(work.shape.tower),
            "encoder_backward_image": encoder_backward(work.shape.tower, checkpointing=learner.checkpointing),
            **asdict(work.group),
        },
        "micro_batches": sampling.micro_batches_mean,
        "trained_groups": sampling.trained_groups,
        "seconds": _seconds(estimate.configured_times.expected),
        "seconds_low": _seconds(estimate.configured_times.fastest),
        "seconds_high": _seconds(estimate.configured_times.slowest),
        "saturation": [_saturation(saturation) for saturation in estimate.saturations],
        "plans": [_plan(plan, price) for pair in estimate.plans for plan in pair if plan is not None],
        "rates": rates_as_json(work.rates),
        "measured": {} if measured is None else {**measured.inputs, **measured.seconds},
    }


def _device(device: DeviceUsage) -> dict[str, Any]:
    return {
        "name": device.name,
        "count": device.count,
        "actors": [list(actor) for actor in device.actors],
        "share": device.utilization,
        "fits": device.fits,
    }


def _plan(plan: Plan, price: float | None) -> dict[str, Any]:
    return {
        "gpus": plan.gpus,
        "overlapped": plan.overlapped,
        "split": asdict(plan.allocation),
        "idle": plan.idle,
        **_with_bounds("seconds", plan.seconds_range),
        **_with_bounds("hours", plan.hours_range),
        **_with_bounds("cost", None if price is None else plan.cost_range(price)),
    }


def _saturation(saturation: Saturation) -> dict[str, Any]:
    return {
        "role": saturation.role,
        "workers": saturation.workers,
        **_with_bounds("seconds", saturation.seconds_range),
        "why": saturation.why,
    }


def _seconds(time: StepTime) -> dict[str, Any]:
    return {**asdict(time), "sync": time.sync, "overlapped_step": time.overlapped}


def _with_bounds(name: str, quantity: Range | None) -> dict[str, float | None]:
    """Returns the value of a quantity and its bounds, under ``name`` and two names derived from it."""
    if quantity is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return {name: quantity.value, f"{name}_low": quantity.low, f"{name}_high": quantity.high}
