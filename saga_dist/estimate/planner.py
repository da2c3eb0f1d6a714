"""The whole estimate of a configuration: sizes, bytes, operations, seconds, plans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from saga_dist.config import RunConfig, load_run_config
from saga_dist.estimate.data import DataShape, data_shape
from saga_dist.estimate.measure import MeasuredSteps, measure_now, measured_run, rates_from
from saga_dist.estimate.memory import ReplayMemory, learner_memory, replay_memory, rollout_memory
from saga_dist.estimate.operations import encoder_forward, group_operations
from saga_dist.estimate.payloads import Payloads, payloads
from saga_dist.estimate.placement import Device, RoleMemory, host_bytes, max_groups, place_actors
from saga_dist.estimate.ranges import Range
from saga_dist.estimate.rates import Card, Rates, card_rates, read_rates
from saga_dist.estimate.sampling import demand
from saga_dist.estimate.scaling import Plan, Saturation, best_plan, own_split, saturations
from saga_dist.estimate.shapes import model_shape
from saga_dist.estimate.steps import StepTime, StepTimes, Workload, step_times
from saga_dist.estimate.token_counts import count_tokens

GPUS = (1, 8, 64)


@dataclass(frozen=True, slots=True)
class RateSource:
    """What seconds rest on."""

    rates: Rates
    known: dict[str, float] = field(default_factory=dict)
    """``contributing_share`` and ``completion_tokens`` where they were measured."""
    source: str = ""
    """Of what is known."""


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """A configuration on a kind of device: all that figures are worked out from."""

    work: Workload
    data: DataShape
    card: Card
    memories: RoleMemory
    replay: ReplayMemory
    """Of a replay worker, wherever it would be."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How full everything gets."""

    plan_inputs: PlanInputs
    payloads: Payloads
    devices: dict[int, list[Device]]
    """By micro-batches of a step: as many as one takes mostly, as 99 of 100 stay within, as it may take."""
    max_groups: int
    """The largest K with room."""
    host: int
    """Bytes of host memory."""


@dataclass(frozen=True, slots=True)
class Estimate(MemoryPlan):
    """All figures of one configuration."""

    own_times: StepTimes
    """A step as the configuration divides it."""
    saturations: list[Saturation]
    plans: list[tuple[Plan | None, Plan | None]]
    """For every number of GPUs: sync and overlapped; None where a role fits no card."""

    @property
    def own(self) -> StepTime:
        """A step as the configuration divides it, at the expected rates."""
        return self.own_times.expected

    @property
    def evaluation_s(self) -> Range:
        """Seconds to embed the test images once, reading left out."""
        work = self.plan_inputs.work
        return work.rates.encoder.range.dividing(self.plan_inputs.data.test_images * encoder_forward(work.shape.tower))


@contextmanager
def plan_inputs(config: RunConfig, card: Card, rate_source: RateSource) -> Iterator[PlanInputs]:
    """Yields a configuration's setting; the model's family stays usable inside.

    Raises:
        UserError: model or data cannot be used.
    """
    with model_shape(config) as shape:
        token_counts, data = count_tokens(config, shape), data_shape(config)
        if "completion_tokens" in rate_source.known:
            token_counts = replace(
                token_counts, completion=rate_source.known["completion_tokens"], completion_source=rate_source.source
            )
        replay, rollout = replay_memory(config, shape, token_counts), rollout_memory(config, shape, token_counts)
        inside = replay if config.needs_mllm and not config.replay.workers else None
        learner = learner_memory(config, shape, data, on_gpu=card.on_gpu, replay=inside)
        memories = RoleMemory(
            learner=learner,
            rollout=rollout if config.needs_engine else None,
            replay=replay if config.needs_mllm and config.replay.workers else None,
        )
        work = Workload(
            config=config,
            shape=shape,
            token_counts=token_counts,
            demand=demand(config, rate_source.known.get("contributing_share"), rate_source.source),
            group=group_operations(shape.decoder, token_counts, config.rollout.group_size),
            learner=learner,
            rollout=rollout,
            rates=rate_source.rates,
        )
        yield PlanInputs(work, data, card, memories, replay)


def memory_plan(plan_inputs: PlanInputs) -> MemoryPlan:
    """Returns how full everything gets; rates are not looked at."""
    config, needed = plan_inputs.work.config, plan_inputs.work.demand
    counts = (math.ceil(needed.micro_batches), needed.micro_batches_often, needed.micro_batches_most)
    moved = payloads(config, plan_inputs.work.shape, plan_inputs.work.token_counts, needed)
    store = moved.store_peak if config.runtime.kind == "ray" else 0
    return MemoryPlan(
        plan_inputs=plan_inputs,
        payloads=moved,
        devices={count: place_actors(config, plan_inputs.memories, plan_inputs.card, count) for count in counts},
        max_groups=max_groups(config, plan_inputs.memories, plan_inputs.card, needed),
        host=host_bytes(config, plan_inputs.memories, plan_inputs.card, store),
    )


def estimate(plan_inputs: PlanInputs, gpus: Sequence[int] = GPUS) -> Estimate:
    """Returns all figures of a setting.

    Args:
        setting: the configuration on a kind of device.
        gpus: numbers of GPUs to plan for; unread where the device is a processor.
    """
    work, card, filled = plan_inputs.work, plan_inputs.card, memory_plan(plan_inputs)
    shared = card.on_gpu and sum(device.count for device in next(iter(filled.devices.values()))) == 1
    return Estimate(
        plan_inputs=plan_inputs,
        payloads=filled.payloads,
        devices=filled.devices,
        max_groups=filled.max_groups,
        host=filled.host,
        own_times=step_times(work, own_split(work, shared=shared)),
        saturations=saturations(work),
        plans=[
            (
                best_plan(work, card, plan_inputs.replay, count, overlapped=False),
                best_plan(work, card, plan_inputs.replay, count, overlapped=True),
            )
            for count in (gpus if card.on_gpu else ())
        ],
    )


def wants_gpu(config: RunConfig) -> bool:
    """Returns whether some role of the configuration asks for a GPU."""
    asks = (config.runtime.learner_num_gpus, config.rollout.num_gpus, config.replay.num_gpus)
    return any(asks) or config.model.device.startswith("cuda")


def assumed_rates(config: RunConfig, card: Card) -> RateSource:
    """Returns the rates of a card's data sheet, at assumed utilisations."""
    return RateSource(card_rates(card, images=math.ceil(config.data.batch_size / config.runtime.learner_processes)))


def measured_rates(config: RunConfig, card: Card, measured: Path) -> RateSource:
    """Returns the rates of a file, or of a run directory's steps; assumed ones where it has none.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    assumed, source = assumed_rates(config, card), f"measured: {measured}"
    if not measured.is_dir():
        rates, known = read_rates(measured, assumed.rates)
        return RateSource(rates, known, source)
    ran = load_run_config(measured)
    steps = measured_run(measured, ran)
    with plan_inputs(ran, card, assumed_rates(ran, card)) as of_run:
        rates = rates_from(steps, of_run.work, what=f"{steps.num_steps} steps of {measured}")
    return RateSource(rates, steps.known, source)


def calibrated_rates(config: RunConfig, card: Card, num_steps: int) -> tuple[RateSource, MeasuredSteps, int]:
    """Returns the rates of a few real steps of this configuration in this process, what they were like, and the
    process's peak bytes.

    Raises:
        UserError: model or data cannot be used.
    """
    serial = config.model_copy(update={"runtime": config.runtime.model_copy(update={"kind": "serial"})})
    steps, peak = measure_now(config, num_steps)
    with plan_inputs(serial, card, assumed_rates(serial, card)) as here:
        rates = rates_from(steps, here.work, what=f"{num_steps} steps now, everything in one process")
    return RateSource(rates, steps.known, "measured: the same steps"), steps, peak
