"""An estimate for people: short tables, every input with its source."""

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
from saga_dist.estimate.placement import Device, cache_tokens, serial_bytes
from saga_dist.estimate.planner import Estimate, assumed_rates
from saga_dist.estimate.ranges import Range
from saga_dist.estimate.rates import Rates
from saga_dist.estimate.scaling import Plan
from saga_dist.estimate.steps import ROLES, Split, step_times

TERA = 1e12


def print_estimate(console: Console, estimate: Estimate, price: float | None) -> None:
    """Prints everything.

    Args:
        console: where.
        estimate: the figures.
        price: of a GPU and hour; None: GPU hours alone.
    """
    plan_inputs = estimate.plan_inputs
    for name, text in _inputs(estimate):
        console.print(f"{name:<13}{text}", highlight=False, markup=False, soft_wrap=True)
    for table in (_parts(estimate), _operations(estimate), _seconds(estimate)):
        console.print(table)
    for line in memory_lines(estimate):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if estimate.plans:
        console.print(_plans(estimate, price))
        for line in _plan_notes(estimate):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(
        "\nrates, and where they come from; brackets above: all assumed rates at the fast end of their "
        "ranges, and all at the slow end",
        highlight=False,
        soft_wrap=True,
    )
    for line in _rates(plan_inputs.work.rates):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_agreement(console: Console, estimate: Estimate, measured: MeasuredSteps, peak: int) -> None:
    """Prints what was just measured beside what the assumed rates would have made of it, in one process.

    Args:
        console: where.
        estimate: from rates of these steps.
        measured: the steps.
        peak: bytes of the process.
    """
    assumed = assumed_rates(estimate.plan_inputs.work.config, estimate.plan_inputs.card).rates
    work = replace(estimate.plan_inputs.work, rates=assumed)
    alone = step_times(work, Split(1, 1, 0, shared=True))
    table = _table(
        "how far the assumptions were off, everything in one process", "what", "assumed", "measured", "ratio", ""
    )
    for role, seconds in measured.seconds.items():
        expected = alone.range(role)
        ratio = str(expected.times(1 / seconds)) if seconds else ""
        table.add_row(role, f"{expected} s", f"{number(seconds)} s", ratio, "")
    if peak and not estimate.plan_inputs.card.on_gpu:
        most = serial_bytes(work.config, estimate.plan_inputs.memories, math.ceil(measured.micro_batches))
        table.add_row("host memory", size(most), size(peak), number(most / peak), "of the process, at most")
    console.print(table)


def _inputs(estimate: Estimate) -> Iterator[tuple[str, str]]:
    plan_inputs = estimate.plan_inputs
    work, token_counts = plan_inputs.work, plan_inputs.work.token_counts
    tower = work.shape.tower
    yield "model", work.shape.source
    yield "data", f"{plan_inputs.data.train_classes:,} training classes; {plan_inputs.data.source}"
    yield (
        "prompt",
        f"{token_counts.prompt} tokens, {token_counts.head} of them before the first image, {tower.tokens} an image; "
        f"{token_counts.prompt_source}",
    )
    if work.config.objective.needs_rollouts:
        yield "completion", f"{token_counts.completion:.0f} tokens on average; {token_counts.completion_source}"
        yield (
            "a step",
            f"{number(work.demand.micro_batches)} micro-batches ({work.demand.micro_batches_often} in 99 of 100 steps, "
            f"at most {work.demand.micro_batches_most}), {number(work.demand.trained_groups)} groups train; "
            f"{work.demand.source}",
        )
    yield "device", plan_inputs.card.name + f", {size(plan_inputs.card.memory)}"


def _parts(estimate: Estimate) -> Table:
    plan_inputs = estimate.plan_inputs
    work, learner = plan_inputs.work, plan_inputs.work.learner
    table = _table("parts", "part", "parameters", "bytes", "what")

    def row(part: str, params: int | None, taken: float, what: str) -> None:
        table.add_row(part, "" if params is None else f"{params:,}", size(taken), what)

    row("encoder", learner.tower.params, FLOAT32 * learner.tower.params, "float32, trained")
    row("pooler", learner.pooler.params, FLOAT32 * learner.pooler.params, "float32, trained")
    row("proxies", learner.proxies.params, FLOAT32 * learner.proxies.params, "float32, trained")
    row("optimizer", None, learner.optimizer, "two moments, a count per tensor")
    row("gradients", None, FLOAT32 * learner.trainable.params, "while the step ends")
    row("micro-batch", None, learner.open_batches(1), "kept for the tower's backward, until the step ends")
    if work.config.needs_mllm:
        replay = plan_inputs.replay
        row("backbone", work.shape.decoder.weights.params, replay.weights, f"{_dtype(estimate)}, frozen, for replay")
        row("replay", None, replay.work, f"one group: {size(replay.activations.prefix)} prompt, the rest completions")
    if plan_inputs.memories.rollout is not None:
        row("engine", None, plan_inputs.memories.rollout.weights, f"{_dtype(estimate)}, the whole model")
        row(
            "its cache",
            None,
            plan_inputs.memories.rollout.wanted_cache,
            f"{plan_inputs.memories.rollout.wanted_tokens:,} tokens wanted, "
            f"{cache_tokens(work.config, plan_inputs.memories.rollout, plan_inputs.card):,} there",
        )
    moved = estimate.payloads
    if work.config.objective.needs_rollouts:
        row("object store", None, moved.step, f"into it a step; {size(moved.tokens)} a pair")
        row("recordings", None, moved.recording(work.config, work.demand), "rollouts/, the whole run")
    row("checkpoint", None, checkpoint_bytes(learner), f"each; {size(disk_bytes(work.config, learner))} in all")
    return table


def _operations(estimate: Estimate) -> Table:
    work = estimate.plan_inputs.work
    images = work.demand.micro_batches * work.config.data.batch_size
    groups = work.demand.micro_batches * work.config.rollout.pairs_per_batch
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
            ("replay", work.demand.trained_groups, work.group.replay(stale=stale), "groups"),
        ]
    for role, count, each, unit in rows:
        table.add_row(role, number(count * each / TERA), number(each / TERA), f"{number(count)} {unit}")
    return table


def _seconds(estimate: Estimate) -> Table:
    own, times = estimate.own, estimate.own_times
    table = _table("seconds of a step, as the configuration divides it", "role", "seconds", "share", "")
    for role in ROLES:
        seconds = times.range(role)
        note = "the longest" if role == own.longest else ""
        table.add_row(role, str(seconds), f"{seconds.value / own.sync:.0%}", note)
    steps = estimate.plan_inputs.work.config.run.steps
    table.add_row("sync", str(times.range("sync")), "", _run(times.range("sync"), steps))
    if estimate.plan_inputs.work.config.objective.needs_rollouts:
        seconds = times.range("overlapped")
        note = _run(seconds, steps) if own.overlaps else "one device: nothing to gain"
        table.add_row("overlapped", str(seconds), "", note)
    table.add_row(
        "evaluation", str(estimate.evaluation_s), "", f"{estimate.plan_inputs.data.test_images:,} test images"
    )
    return table


def memory_lines(estimate: Estimate) -> list[str]:
    """Returns how full every device is, the largest K, and the host, in lines."""
    plan_inputs = estimate.plan_inputs
    work = plan_inputs.work
    lines = ["memory:"]
    for count, devices in sorted(estimate.devices.items()):
        batches = "1 micro-batch" if count == 1 else f"{count} micro-batches"
        lines += [f"  {batches} in a step: {_device(device)}" for device in devices]
    if work.config.objective.needs_rollouts:
        group, found = work.config.rollout.group_size, estimate.max_groups
        lines.append(
            f"  largest K with room: {found}, K x G = {found * group:,} at G = {group} (each further micro-batch keeps "
            f"{size(work.learner.open_batches(1))} open; replay takes one group at a time whatever K is)"
        )
    most = max(estimate.devices)
    if (
        plan_inputs.card.on_gpu
        and not fits_with(plan_inputs, most)
        and (change := fitting_overrides(plan_inputs, most))
    ):
        lines.append(f"  fits in every step with {' '.join(change)}: the same gradients, a little slower")
    lines.append(f"  host: {size(estimate.host)} for all processes, {size(estimate.payloads.store_peak)} of it objects")
    return lines


def _device(device: Device) -> str:
    roles: dict[str, list[int]] = {}
    for role, taken in device.actors:
        roles.setdefault(role, []).append(taken)
    parts = [
        f"{role} {size(taken[0])}" + (f" x {len(taken)}" if len(taken) > 1 else "") for role, taken in roles.items()
    ]
    count = f"{device.count} x " if device.count > 1 else ""
    verdict = "" if device.fits else " DOES NOT FIT"
    used = f"{size(device.used)} of {size(device.capacity)}, {device.share:.0%}{verdict}"
    return f"{count}{device.name}: {' + '.join(parts)} = {used}"


def _plans(estimate: Estimate, price: float | None) -> Table:
    title = "the run on GPUs: the fastest division in which every role fits"
    spent = "GPU h" if price is None else "cost"
    table = _table(title, "GPUs", "mode", "division", "s/step", "steps/h", "hours", spent)
    for pair in estimate.plans:
        for plan in pair:
            if plan is None:
                continue
            table.add_row(
                str(plan.gpus),
                "overlapped" if plan.overlapped else "sync",
                _split(plan),
                str(plan.seconds_range),
                str(plan.seconds_range.dividing(3600)),
                str(plan.hours_range),
                str(plan.cost_range(1.0 if price is None else price)),
            )
    return table


def _plan_notes(estimate: Estimate) -> Iterator[str]:
    for pair in estimate.plans:
        for plan in pair:
            if plan is None:
                yield "a role fits no card, however many there are"
            elif plan.idle:
                mode = "overlapped" if plan.overlapped else "sync"
                yield f"{plan.gpus} GPUs, {mode}: {plan.idle} idle; no role gains from more"
    for one in estimate.saturations:
        yield f"{one.role} saturates at {one.workers}, {one.seconds_range} s a step: {one.why}"


def _split(plan: Plan) -> str:
    split = plan.split
    if split.shared:
        return "all on one"
    parts = [f"learner {split.learners}", f"rollout {split.rollouts}" + _each(split.rollout_gpus)]
    parts.append(f"replay {split.replays}" + _each(split.replay_gpus) if split.replays else "replay in the learner")
    return ", ".join(parts)


def _each(gpus: int) -> str:
    return f" x {gpus} GPUs" if gpus > 1 else ""


def _rates(rates: Rates) -> Iterator[str]:
    units = {"decode": "B/s", "update": "B/s", "link": "B/s", "engine_step": "s", "encode_overhead": "s"}
    units |= {"rollout_tokens": "tokens/s"}
    for field in fields(rates):
        rate = getattr(rates, field.name)
        if field.name == "rollout_tokens" and not rate.value:
            continue
        yield f"  {field.name:<18}{rate.value:>10.2g} {units.get(field.name, 'FLOP/s'):<9}{rate.source}"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=f"\n{escape(title)}", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings):
        last = index == len(headings) - 1
        text = index == 0 or (last and heading in ("what", "of", "")) or heading in ("mode", "division")
        table.add_column(heading, justify="left" if text else "right", no_wrap=not last and heading != "division")
    return table


def _run(seconds: Range, steps: int) -> str:
    return f"{seconds.dividing(3600)} steps/h; {steps:,} steps in {seconds.times(steps / 3600)} h"


def _dtype(estimate: Estimate) -> str:
    return str(estimate.plan_inputs.work.shape.dtype).removeprefix("torch.")
