"""Prints an estimate as short tables, every input with its source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from saga_dist.estimate.capacity import fits_with, fitting_overrides
from saga_dist.estimate.formatting import number, size
from saga_dist.estimate.measure import MeasuredSteps
from saga_dist.estimate.memory import FLOAT32
from saga_dist.estimate.operations import encoder_backward, encoder_forward
from saga_dist.estimate.payloads import checkpoint_bytes, disk_bytes
from saga_dist.estimate.placement import DeviceUsage, kv_cache_capacity, serial_bytes
from saga_dist.estimate.planner import Estimate, assumed_rates
from saga_dist.estimate.ranges import Range
from saga_dist.estimate.rates import Rates
from saga_dist.estimate.scaling import Plan
from saga_dist.estimate.steps import ROLES, Allocation, step_times

TERA = 1e12


def print_estimate(console: Console, estimate: Estimate, price: float | None) -> None:
    """Prints inputs, sizes, durations, memory, plans and rates.

    Args:
        console: console to print to.
        estimate: the estimate.
        price: price of a GPU for an hour; None prints GPU hours in place of costs.
    """
    plan_inputs = estimate.plan_inputs
    for name, text in _inputs(estimate):
        console.print(f"{name:<13}{text}", highlight=False, markup=False, soft_wrap=True)
    for table in (_parts_table(estimate), _operations_table(estimate), _seconds_table(estimate)):
        console.print(table)
    for line in memory_lines(estimate):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if estimate.plans:
        console.print(_plans_table(estimate, price))
        for line in _plan_notes(estimate):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(
        "\nrates and their sources; in brackets above: all assumed rates at the fast end of their ranges, and all at "
        "the slow end",
        highlight=False,
        soft_wrap=True,
    )
    for line in _rates(plan_inputs.work.rates):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_calibration(console: Console, estimate: Estimate, measured: MeasuredSteps, peak: int) -> None:
    """Prints measured durations and memory beside those that assumed rates give, for one process with all roles.

    Args:
        console: console to print to.
        estimate: estimate with the rates of the measured steps.
        measured: means over the measured steps.
        peak: peak memory of the measuring process in bytes; 0 when it is unknown.
    """
    assumed = assumed_rates(estimate.plan_inputs.work.config, estimate.plan_inputs.card).rates
    work = replace(estimate.plan_inputs.work, rates=assumed)
    one_process = step_times(work, Allocation(1, 1, 0, shared=True))
    table = _table(
        "how far the assumptions were off, everything in one process", "what", "assumed", "measured", "ratio", ""
    )
    for role, seconds in measured.seconds.items():
        expected = one_process.range(role)
        ratio = str(expected * (1 / seconds)) if seconds else ""
        table.add_row(role, f"{expected} s", f"{number(seconds)} s", ratio, "")
    if peak and not estimate.plan_inputs.card.on_gpu:
        estimated = serial_bytes(work.config, estimate.plan_inputs.memories, math.ceil(measured.micro_batches))
        table.add_row("host memory", size(estimated), size(peak), number(estimated / peak), "peak of the process")
    console.print(table)


def _inputs(estimate: Estimate) -> Iterator[tuple[str, str]]:
    """Yields name and description of each input."""
    plan_inputs = estimate.plan_inputs
    work, token_counts = plan_inputs.work, plan_inputs.work.token_counts
    sampling = work.dynamic_sampling
    yield "model", work.shape.source
    yield "data", f"{plan_inputs.data.train_classes:,} training classes; {plan_inputs.data.source}"
    yield (
        "prompt",
        f"{token_counts.prompt} tokens, {token_counts.common_prefix} of them before the first image, "
        f"{work.shape.tower.tokens} an image; {token_counts.prompt_source}",
    )
    if work.config.objective.needs_rollouts:
        yield "completion", f"{token_counts.completion:.0f} tokens on average; {token_counts.completion_source}"
        yield (
            "a step",
            f"{number(sampling.micro_batches_mean)} micro-batches ({sampling.micro_batches_p99} in 99 of 100 steps, "
            f"at most {sampling.micro_batches_max}), {number(sampling.trained_groups)} groups train; "
            f"{sampling.source}",
        )
    if work.config.objective.needs_verdicts:
        yield "a step", f"1 micro-batch, {sampling.trained_groups:.0f} pairs train; {sampling.source}"
    yield "device", plan_inputs.card.name + f", {size(plan_inputs.card.memory)}"


def _parts_table(estimate: Estimate) -> Table:
    """Returns the parameters and bytes of the parts of a run."""
    plan_inputs = estimate.plan_inputs
    work, learner = plan_inputs.work, plan_inputs.work.learner
    table = _table("parts", "part", "parameters", "bytes", "what")

    def row(part: str, params: int | None, taken: float, what: str) -> None:
        table.add_row(part, "" if params is None else f"{params:,}", size(taken), what)

    trained = learner.trained
    encoder = learner.tower.params + trained.added
    of_them = "" if trained.weights.params == encoder else f"{trained.weights.params:,} of them "
    row("encoder", encoder, FLOAT32 * encoder, f"float32, {of_them}trained")
    row("pooler", learner.pooler.params, FLOAT32 * learner.pooler.params, "float32, trained")
    row("proxies", learner.proxies.params, FLOAT32 * learner.proxies.params, "float32, trained")
    row("optimizer", None, learner.optimizer, "two moments, a step count per tensor")
    row("gradients", None, FLOAT32 * learner.trainable.params, "from the backward pass to the optimizer step")
    row("micro-batch", None, learner.open_micro_batches(1), "activations for the tower's backward, until the step ends")
    if work.config.needs_mllm:
        replay = plan_inputs.replay
        row("backbone", work.shape.decoder.weights.params, replay.weights, f"{_dtype(estimate)}, frozen, for replay")
        prefix_bytes = size(replay.activations.prefix)
        row("replay", None, replay.working_set, f"one group: {prefix_bytes} prompt, the rest completions")
    if plan_inputs.memories.rollout is not None:
        row("engine", None, plan_inputs.memories.rollout.weights, f"{_dtype(estimate)}, the whole model")
        row(
            "KV cache",
            None,
            plan_inputs.memories.rollout.kv_cache_bytes,
            f"{plan_inputs.memories.rollout.kv_cache_tokens:,} tokens needed, "
            f"{kv_cache_capacity(work.config, plan_inputs.memories.rollout, plan_inputs.card):,} available",
        )
    payloads = estimate.payloads
    if work.config.objective.needs_mllm:
        row("object store", None, payloads.step, f"written per step; {size(payloads.tokens)} per pair")
    if work.config.objective.needs_rollouts:
        row("recordings", None, payloads.recording(work.config, work.dynamic_sampling), "rollouts/, the whole run")
    row("checkpoint", None, checkpoint_bytes(learner), f"each; {size(disk_bytes(work.config, learner))} in all")
    return table


def _operations_table(estimate: Estimate) -> Table:
    """Returns the floating-point operations of each role."""
    work = estimate.plan_inputs.work
    images = work.dynamic_sampling.micro_batches_mean * work.config.data.batch_size
    groups = work.dynamic_sampling.micro_batches_mean * work.config.rollout.pairs_per_batch
    stale = work.config.rollout.max_staleness > 0
    checkpointing = work.learner.checkpointing
    table = _table("operations", "role", "a step, TFLOP", "each", "of")
    rows = [
        ("encoder forward", images, encoder_forward(work.shape.tower), "images"),
        ("encoder backward", images, encoder_backward(work.shape.tower, checkpointing=checkpointing), "images"),
    ]
    if work.config.objective.needs_rollouts:
        rows += [
            ("prefill", groups, work.group.prefill, "groups"),
            ("decode", groups, work.group.decode, "groups"),
        ]
    if work.config.objective.needs_mllm:
        rows.append(("replay", work.dynamic_sampling.trained_groups, work.group.replay(stale=stale), "groups"))
    for role, count, each, unit in rows:
        table.add_row(role, number(count * each / TERA), number(each / TERA), f"{number(count)} {unit}")
    return table


def _seconds_table(estimate: Estimate) -> Table:
    """Returns the durations of a step with the configured allocation."""
    expected, times = estimate.configured_time, estimate.configured_times
    table = _table("seconds of a step, with the allocation of the configuration", "role", "seconds", "share", "")
    for role in ROLES:
        seconds = times.range(role)
        note = "the longest" if role == expected.longest else ""
        table.add_row(role, str(seconds), f"{seconds.value / expected.sync:.0%}", note)
    if expected.reading:
        threads = estimate.plan_inputs.work.config.data.decode_threads
        table.add_row("reading", str(times.range("reading")), "", f"images, in {threads} threads meanwhile")
    steps = estimate.plan_inputs.work.config.run.steps
    table.add_row("sync", str(times.range("sync")), "", _run(times.range("sync"), steps))
    if estimate.plan_inputs.work.config.objective.needs_rollouts:
        seconds = times.range("overlapped")
        note = _run(seconds, steps) if expected.overlaps else "one device: no overlap"
        table.add_row("overlapped", str(seconds), "", note)
    table.add_row(
        "evaluation", str(estimate.evaluation_s), "", f"{estimate.plan_inputs.data.test_images:,} test images"
    )
    return table


def memory_lines(estimate: Estimate) -> list[str]:
    """Returns lines with the memory use of every device, the largest K, and the host memory."""
    plan_inputs = estimate.plan_inputs
    work = plan_inputs.work
    lines = ["memory:"]
    for count, devices in sorted(estimate.devices.items()):
        batches = "1 micro-batch" if count == 1 else f"{count} micro-batches"
        lines += [f"  {batches} in a step: {_device(device)}" for device in devices]
    if work.config.objective.needs_rollouts:
        group, groups = work.config.rollout.group_size, estimate.max_groups
        lines.append(
            f"  largest K that fits: {groups}, K x G = {groups * group:,} at G = {group} (each further micro-batch "
            f"holds {size(work.learner.open_micro_batches(1))}; replay processes one group at a time for any K)"
        )
    largest = max(estimate.devices)
    if (
        plan_inputs.card.on_gpu
        and not fits_with(plan_inputs, largest)
        and (change := fitting_overrides(plan_inputs, largest))
    ):
        lines.append(f"  fits in every step with {' '.join(change)}: the same gradients, a little slower")
    lines.append(
        f"  host: {size(estimate.host)} for all processes, {size(estimate.payloads.store_peak)} of it in the object "
        "store"
    )
    return lines


def _device(device: DeviceUsage) -> str:
    roles: dict[str, list[int]] = {}
    for role, taken in device.actors:
        roles.setdefault(role, []).append(taken)
    parts = [
        f"{role} {size(taken[0])}" + (f" x {len(taken)}" if len(taken) > 1 else "") for role, taken in roles.items()
    ]
    count = f"{device.count} x " if device.count > 1 else ""
    warning = "" if device.fits else " DOES NOT FIT"
    used = f"{size(device.used)} of {size(device.capacity)}, {device.utilization:.0%}{warning}"
    return f"{count}{device.name}: {' + '.join(parts)} = {used}"


def _plans_table(estimate: Estimate, price: float | None) -> Table:
    """Returns the plans for each number of GPUs."""
    title = "the run on GPUs: the fastest allocation in which every role fits"
    cost = "GPU h" if price is None else "cost"
    table = _table(title, "GPUs", "mode", "allocation", "s/step", "steps/h", "hours", cost)
    for pair in estimate.plans:
        for plan in pair:
            if plan is None:
                continue
            table.add_row(
                str(plan.gpus),
                "overlapped" if plan.overlapped else "sync",
                _allocation(plan),
                str(plan.seconds_range),
                str(3600 / plan.seconds_range),
                str(plan.hours_range),
                str(plan.cost_range(1.0 if price is None else price)),
            )
    return table


def _plan_notes(estimate: Estimate) -> Iterator[str]:
    for pair in estimate.plans:
        for plan in pair:
            if plan is None:
                yield "a role fits no card, for any number of cards"
            elif plan.idle:
                mode = "overlapped" if plan.overlapped else "sync"
                yield f"{plan.gpus} GPUs, {mode}: {plan.idle} idle; no role gains from more"
    for saturation in estimate.saturations:
        yield (
            f"{saturation.role} saturates at {saturation.workers}, {saturation.seconds_range} s a step: "
            f"{saturation.why}"
        )


def _allocation(plan: Plan) -> str:
    allocation = plan.allocation
    if allocation.shared:
        return "all on one"
    parts = [
        f"learner {allocation.learners}",
        f"rollout {allocation.rollouts}{_gpus_each(allocation.rollout_gpus)}" if allocation.rollouts else "no rollouts",
        f"replay {allocation.replays}{_gpus_each(allocation.replay_gpus)}"
        if allocation.replays
        else "replay in the learner",
    ]
    return ", ".join(parts)


def _gpus_each(gpus: int) -> str:
    return f" x {gpus} GPUs" if gpus > 1 else ""


def _rates(rates: Rates) -> Iterator[str]:
    """Yields a line for each rate: name, value, unit, source."""
    units = {"decode": "B/s", "update": "B/s", "link": "B/s", "engine_step": "s", "encode_overhead": "s"}
    units |= {"rollout_tokens": "tokens/s", "longest": "x mean"}
    for field in fields(rates):
        rate = getattr(rates, field.name)
        if field.name == "rollout_tokens" and not rate.value:
            continue
        yield f"  {field.name:<18}{rate.value:>10.2g} {units.get(field.name, 'FLOP/s'):<9}{rate.source}"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=f"\n{escape(title)}", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings):
        last = index == len(headings) - 1
        text = index == 0 or (last and heading in ("what", "of", "")) or heading in ("mode", "allocation")
        table.add_column(heading, justify="left" if text else "right", no_wrap=not last and heading != "allocation")
    return table


def _run(seconds: Range, steps: int) -> str:
    """Returns the speed and duration of a run with steps of this duration."""
    return f"{3600 / seconds} steps/h; {steps:,} steps in {seconds * (steps / 3600)} h"


def _dtype(estimate: Estimate) -> str:
    return str(estimate.plan_inputs.work.shape.dtype).removeprefix("torch.")
