"""Estimates a configuration: sizes, bytes, operations, seconds, and plans for numbers of GPUs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from saga_dist.config import RunConfig, load_run_config
from saga_dist.estimate.data import DataShape, data_shape
from saga_dist.estimate.measure import MeasuredSteps, measure_steps, rates_from, steps_of_run
from saga_dist.estimate.memory import ReplayMemory, learner_memory, replay_memory, rollout_memory
from saga_dist.estimate.operations import encoder_forward, group_operations
from saga_dist.estimate.payloads import Payloads, payloads
from saga_dist.estimate.placement import DeviceUsage, RoleMemory, assign_devices, host_bytes, max_groups
from saga_dist.estimate.ranges import Range
from saga_dist.estimate.rates import Card, Rates, card_rates, read_rates
from saga_dist.estimate.sampling import dynamic_sampling
from saga_dist.estimate.scaling import Plan, Saturation, best_plan, configured_allocation, saturations
from saga_dist.estimate.shapes import model_shape
from saga_dist.estimate.steps import StepTime, StepTimes, Workload, step_times
from saga_dist.estimate.token_counts import count_tokens

GPUS = (1, 8, 64)
"""Numbers of GPUs that are planned for unless others are given."""


@dataclass(frozen=True, slots=True)
class RateSource:
    """Rates used to compute durations, with the inputs that were measured along with them."""

    rates: Rates
    """Rates, each with its source."""
    inputs: dict[str, float] = field(default_factory=dict)
    """Measured ``contributing_share`` and ``completion_tokens``; what is absent is assumed."""
    source: str = ""
    """Source of the measured inputs."""


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """A configuration on a kind of device: everything that an estimate is computed from."""

    work: Workload
    """Configuration, sizes and rates that the duration of a step depends on."""
    data: DataShape
    """Sizes of the data set."""
    card: Card
    """Kind of device that the run is planned on."""
    memories: RoleMemory
    """Memory of each role that the configuration has."""
    replay: ReplayMemory
    """Memory of a replay worker, also when the configuration has none."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory and object-store use of one configuration."""

    plan_inputs: PlanInputs
    """Inputs of the estimate."""
    payloads: Payloads
    """Bytes of records."""
    devices: dict[int, list[DeviceUsage]]
    """Devices by number of micro-batches in a step: the mean rounded up, the 99th percentile, and the maximum."""
    max_groups: int
    """Largest K with which every device can hold its actors."""
    host: int
    """Bytes of host memory of all processes."""


@dataclass(frozen=True, slots=True)
class Estimate(MemoryPlan):
    """Memory, durations and plans of one configuration."""

    configured_times: StepTimes
    """Durations of a step with the allocation of the configuration."""
    saturations: list[Saturation]
    """Number of workers at which each role saturates."""
    plans: list[tuple[Plan | None, Plan | None]]
    """Sync and overlapped plan for each number of GPUs; None where a role fits no card."""

    @property
    def configured_time(self) -> StepTime:
        """Durations of a step with the allocation of the configuration, at the expected rates."""
        return self.configured_times.expected

    @property
    def evaluation_s(self) -> Range:
        """Seconds to encode the test images once, without reading and preprocessing them."""
        work = self.plan_inputs.work
        return self.plan_inputs.data.test_images * encoder_forward(work.shape.tower) / work.rates.encoder.range


@contextmanager
def plan_inputs(config: RunConfig, card: Card, rate_source: RateSource) -> Iterator[PlanInputs]:
    """Yields the inputs of an estimate; the model's family is usable only within the context.

    Args:
        config: configuration of the run.
        card: kind of device.
        rate_source: rates and measured inputs.

    Raises:
        UserError: model or data cannot be used.
    """
    with model_shape(config) as shape:
        token_counts, data = count_tokens(config, shape), data_shape(config)
        if config.objective.needs_rollouts and "completion_tokens" in rate_source.inputs:
            token_counts = replace(
                token_counts, completion=rate_source.inputs["completion_tokens"], completion_source=rate_source.source
            )
        replay = replay_memory(config, shape, token_counts, on_gpu=card.on_gpu)
        rollout = rollout_memory(config, shape, token_counts)
        in_process = replay if config.needs_mllm and not config.replay.workers else None
        learner = learner_memory(config, shape, data, on_gpu=card.on_gpu, replay=in_process)
        memories = RoleMemory(
            learner=learner,
            rollout=rollout if config.needs_engine else None,
            replay=replay if config.needs_mllm and config.replay.workers else None,
        )
        work = Workload(
            config=config,
            shape=shape,
            token_counts=token_counts,
            dynamic_sampling=dynamic_sampling(config, rate_source.inputs.get("contributing_share"), rate_source.source),
            group=group_operations(shape.decoder, token_counts, config.completions_per_pair),
            learner=learner,
            rollout=rollout,
            rates=rate_source.rates,
        )
        yield PlanInputs(work, data, card, memories, replay)


def memory_plan(plan_inputs: PlanInputs) -> MemoryPlan:
    """Returns the memory use of a configuration, which does not depend on rates."""
    config, sampling = plan_inputs.work.config, plan_inputs.work.dynamic_sampling
    counts = (math.ceil(sampling.micro_batches_mean), sampling.micro_batches_p99, sampling.micro_batches_max)
    record_bytes = payloads(config, plan_inputs.work.shape, plan_inputs.work.token_counts, sampling)
    store = record_bytes.store_peak if config.runtime.kind == "ray" else 0
    return MemoryPlan(
        plan_inputs=plan_inputs,
        payloads=record_bytes,
        devices={count: assign_devices(config, plan_inputs.memories, plan_inputs.card, count) for count in counts},
        max_groups=max_groups(config, plan_inputs.memories, plan_inputs.card, sampling),
        host=host_bytes(config, plan_inputs.memories, plan_inputs.card, store),
    )


def estimate(plan_inputs: PlanInputs, gpus: Sequence[int] = GPUS) -> Estimate:
    """Returns the estimate of a configuration.

    Args:
        plan_inputs: the configuration on a kind of device.
        gpus: numbers of GPUs to plan for; ignored when the device is a CPU.
    """
    work, card, memory = plan_inputs.work, plan_inputs.card, memory_plan(plan_inputs)
    shared = card.on_gpu and sum(device.count for device in next(iter(memory.devices.values()))) == 1
    return Estimate(
        plan_inputs=plan_inputs,
        payloads=memory.payloads,
        devices=memory.devices,
        max_groups=memory.max_groups,
        host=memory.host,
        configured_times=step_times(work, configured_allocation(work, shared=shared)),
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
    """Returns True when some role of the configuration requests a GPU."""
    requested = (config.runtime.learner_num_gpus, config.rollout.num_gpus, config.replay.num_gpus)
    return any(requested) or config.model.device.startswith("cuda")


def assumed_rates(config: RunConfig, card: Card) -> RateSource:
    """Returns rates from a card's data sheet and assumed utilisations."""
    return RateSource(card_rates(card, images=math.ceil(config.data.batch_size / config.runtime.learner_processes)))


def measured_rates(config: RunConfig, card: Card, measured: Path) -> RateSource:
    """Returns measured rates, and assumed ones where the measurement has none.

    Args:
        config: configuration to estimate.
        card: kind of device.
        measured: JSON file of rates, or a run directory, whose steps give the rates.

    Raises:
        UserError: ``measured`` cannot be read, or has another content.
    """
    assumed, source = assumed_rates(config, card), f"measured: {measured}"
    if not measured.is_dir():
        rates, inputs = read_rates(measured, assumed.rates)
        return RateSource(rates, inputs, source)
    run_config = load_run_config(measured)
    steps = steps_of_run(measured, run_config)
    with plan_inputs(run_config, card, assumed_rates(run_config, card)) as run_inputs:
        rates = rates_from(steps, run_inputs.work, what=f"{steps.num_steps} steps of {measured}")
    return RateSource(rates, steps.inputs, source)


def calibrated_rates(config: RunConfig, card: Card, num_steps: int) -> tuple[RateSource, MeasuredSteps, int]:
    """Trains ``num_steps`` steps in this process, all roles in turn, and derives the device's rates from their times.

    Args:
        config: configuration to estimate.
        card: this machine's device, with its memory and nominal rates.
        num_steps: number of steps to measure.

    Returns:
        rate_source: rates (operations and bytes per second of each role), and the token counts that they belong to.
        steps: seconds and token counts of each phase, means over the steps.
        peak: highest resident set size of the process, bytes.

    Raises:
        UserError: model or data cannot be used.
    """
    serial = config.model_copy(update={"runtime": config.runtime.model_copy(update={"kind": "serial"})})
    steps, peak = measure_steps(config, num_steps)
    with plan_inputs(serial, card, assumed_rates(serial, card)) as serial_inputs:
        rates = rates_from(steps, serial_inputs.work, what=f"{num_steps} steps now, everything in one process")
    return RateSource(rates, steps.inputs, "measured: the same steps"), steps, peak
