"""An estimate as plain values, for JSON: rates in the form that ``--measured`` takes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from saga_dist.estimate.measure import MeasuredSteps
from saga_dist.estimate.memory import FLOAT32
from saga_dist.estimate.operations import encoder_backward, encoder_forward
from saga_dist.estimate.payloads import checkpoint_bytes, disk_bytes
from saga_dist.estimate.placement import Device, cache_tokens
from saga_dist.estimate.planner import Estimate
from saga_dist.estimate.ranges import Range
from saga_dist.estimate.rates import as_json as rates_as_json
from saga_dist.estimate.scaling import Plan, Saturation
from saga_dist.estimate.steps import StepTime


def as_json(estimate: Estimate, price: float | None, measured: MeasuredSteps | None = None) -> dict[str, Any]:
    """Returns all figures; those that rest on rates also at the fast and slow ends of assumed ones.

    Args:
        estimate: the figures.
        price: of a GPU and hour.
        measured: steps that the rates were taken from just now.
    """
    plan_inputs = estimate.plan_inputs
    work, learner, rollout = plan_inputs.work, plan_inputs.work.learner, plan_inputs.work.rollout
    demand = work.demand
    return {
        "model": {"name": work.shape.name, "source": work.shape.source},
        "device": asdict(plan_inputs.card),
        "inputs": {
            "prompt_tokens": work.token_counts.prompt,
            "completion_tokens": work.token_counts.completion,
            "completion_source": work.token_counts.completion_source,
            "contributing_share": demand.contributing_share,
            "contributing_source": demand.source,
            "train_classes": plan_inputs.data.train_classes,
        },
        "parameters": {
            "encoder": learner.tower.params,
            "pooler": learner.pooler.params,
            "proxies": learner.proxies.params,
            "backbone": work.shape.decoder.weights.params,
        },
        "bytes": {
            "trainable_weights": learner.weights,
            "optimizer": learner.optimizer,
            "gradients": FLOAT32 * learner.trainable.params,
            "micro_batch": learner.open_batches(1),
            "backbone": plan_inputs.replay.weights,
            "replay": plan_inputs.replay.work,
            "engine_weights": rollout.weights,
            "cache_token": rollout.token_bytes,
            "cache_wanted": rollout.wanted_cache,
            "pair_tokens": estimate.payloads.tokens,
            "pair_gradients": estimate.payloads.gradients,
            "object_store_step": estimate.payloads.step,
            "checkpoint": checkpoint_bytes(learner),
            "disk": disk_bytes(work.config, learner),
            "host": estimate.host,
        },
        "cache_tokens": cache_tokens(work.config, rollout, plan_inputs.card),
        "devices": {str(count): [_device(device) for device in devices] for count, devices in estimate.devices.items()},
        "most_groups": estimate.max_groups,
        "operations": {
            "encoder_forward_image": encoder_forward(work.shape.tower),
            "encoder_backward_image": encoder_backward(work.shape.tower, checkpointing=learner.checkpointing),
            **asdict(work.group),
        },
        "micro_batches": demand.micro_batches,
        "trained_groups": demand.trained_groups,
        "seconds": _seconds(estimate.own_times.expected),
        "seconds_low": _seconds(estimate.own_times.fastest),
        "seconds_high": _seconds(estimate.own_times.slowest),
        "saturation": [_saturation(one) for one in estimate.saturations],
        "plans": [_plan(plan, price) for pair in estimate.plans for plan in pair if plan is not None],
        "rates": rates_as_json(work.rates),
        "measured": {} if measured is None else {**measured.known, **measured.seconds},
    }


def _device(device: Device) -> dict[str, Any]:
    actors = [list(actor) for actor in device.actors]
    return {"name": device.name, "count": device.count, "actors": actors, "share": device.share, "fits": device.fits}


def _plan(plan: Plan, price: float | None) -> dict[str, Any]:
    return {
        "gpus": plan.gpus,
        "overlapped": plan.overlapped,
        "split": asdict(plan.split),
        "idle": plan.idle,
        **_with_bounds("seconds", plan.seconds_range),
        **_with_bounds("hours", plan.hours_range),
        **_with_bounds("cost", None if price is None else plan.cost_range(price)),
    }


def _saturation(one: Saturation) -> dict[str, Any]:
    return {
        "role": one.role,
        "workers": one.workers,
        **_with_bounds("seconds", one.seconds_range),
        "why": one.why,
    }


def _seconds(time: StepTime) -> dict[str, Any]:
    return {**asdict(time), "sync": time.sync, "overlapped_step": time.overlapped}


def _with_bounds(name: str, found: Range | None) -> dict[str, float | None]:
    names = (name, f"{name}_low", f"{name}_high")
    return dict(zip(names, (None, None, None) if found is None else (found.value, found.low, found.high), strict=True))
