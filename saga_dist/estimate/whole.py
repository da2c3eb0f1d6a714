"""The whole estimate of a configuration: sizes, bytes, operations, seconds, plans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from saga_dist.config import RunConfig, load_run_config
from saga_dist.estimate.data import DataShape, data_shape
from saga_dist.estimate.measure import Measured, measure_now, measured_run, rates_from
from saga_dist.estimate.memory import ReplayMemory, learner_memory, replay_memory, rollout_memory
from saga_dist.estimate.operations import encoder_forward, group_operations
from saga_dist.estimate.payloads import Payloads, payloads
from saga_dist.estimate.placement import Device, Memories, host_bytes, most_groups, place
from saga_dist.estimate.rates import Card, Rates, card_rates, read_rates
from saga_dist.estimate.sampling import demand
from saga_dist.estimate.scaling import Plan, Saturation, best_plan, own_split, saturations
from saga_dist.estimate.shapes import model_shape
from saga_dist.estimate.steps import StepTime, Workload, step_time
from saga_dist.estimate.words import count_words

GPUS = (1, 8, 64)


@dataclass(frozen=True, slots=True)
class Basis:
    """What seconds rest on."""

    rates: Rates
    known: dict[str, float] = field(default_factory=dict)
    """``contributing_share`` and ``completion_tokens`` where they were measured."""
    source: str = ""
    """Of what is known."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A configuration on a kind of device: all that figures are worked out from."""

    work: Workload
    data: DataShape
    card: Card
    memories: Memories
    replay: ReplayMemory
    """Of a replay worker, wherever it would be."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How full everything gets."""

    setting: Setting
    payloads: Payloads
    devices: dict[int, list[Device]]
    """By micro-batches of a step: as many as one takes mostly, as 99 of 100 stay within, as it may take."""
    most_groups: int
    """The largest K with room."""
    host: int
    """Bytes of host memory."""


@dataclass(frozen=True, slots=True)
class Estimate(Occupancy):
    """All figures of one configuration."""

    own: StepTime
    """A step as the configuration divides it."""
    saturations: list[Saturation]
    plans: list[tuple[Plan | None, Plan | None]]
    """For every number of GPUs: sync and overlapped; None where a role fits no card."""

    @property
    def evaluation_s(self) -> float:
        """Seconds to embed the test images once, reading left out."""
        work = self.setting.work
        return self.setting.data.test_images * encoder_forward(work.shape.tower) / work.rates.encoder.value


@contextmanager
def setting(config: RunConfig, card: Card, basis: Basis) -> Iterator[Setting]:
    """Yields a configuration's setting; the model's family stays usable inside.

    Raises:
        UserError: model or data cannot be used.
    """
    with model_shape(config) as shape:
        words, data = count_words(config, shape), data_shape(config)
        if "completion_tokens" in basis.known:
            words = replace(words, completion=basis.known["completion_tokens"], completion_source=basis.source)
        replay, rollout = replay_memory(config, shape, words), rollout_memory(config, shape, words)
        inside = replay if config.needs_mllm and not config.replay.workers else None
        learner = learner_memory(config, shape, data, on_gpu=card.on_gpu, replay=inside)
        memories = Memories(
            learner=learner,
            rollout=rollout if config.needs_engine else None,
            replay=replay if config.needs_mllm and config.replay.workers else None,
        )
        work = Workload(
            config=config,
            shape=shape,
            words=words,
            demand=demand(config, basis.known.get("contributing_share"), basis.source),
            group=group_operations(shape.decoder, words, config.rollout.group_size),
            learner=learner,
            rollout=rollout,
            rates=basis.rates,
        )
        yield Setting(work, data, card, memories, replay)


def occupancy(setting: Setting) -> Occupancy:
    """Returns how full everything gets; rates are not looked at."""
    config, needed = setting.work.config, setting.work.demand
    counts = (math.ceil(needed.micro_batches), needed.micro_batches_often, needed.micro_batches_most)
    moved = payloads(config, setting.work.shape, setting.work.words, needed)
    store = moved.store_peak if config.runtime.kind == "ray" else 0
    return Occupancy(
        setting=setting,
        payloads=moved,
        devices={count: place(config, setting.memories, setting.card, count) for count in counts},
        most_groups=most_groups(config, setting.memories, setting.card, needed),
        host=host_bytes(config, setting.memories, setting.card, store),
    )


def estimate(setting: Setting, gpus: Sequence[int] = GPUS) -> Estimate:
    """Returns all figures of a setting.

    Args:
        setting: the configuration on a kind of device.
        gpus: numbers of GPUs to plan for; unread where the device is a processor.
    """
    work, card, filled = setting.work, setting.card, occupancy(setting)
    shared = card.on_gpu and sum(device.count for device in next(iter(filled.devices.values()))) == 1
    return Estimate(
        setting=setting,
        payloads=filled.payloads,
        devices=filled.devices,
        most_groups=filled.most_groups,
        host=filled.host,
        own=step_time(work, own_split(work, shared=shared)),
        saturations=saturations(work),
        plans=[
            (
                best_plan(work, card, setting.replay, count, overlapped=False),
                best_plan(work, card, setting.replay, count, overlapped=True),
            )
            for count in (gpus if card.on_gpu else ())
        ],
    )


def wants_gpu(config: RunConfig) -> bool:
    """Returns whether some role of the configuration asks for a GPU."""
    asks = (config.runtime.learner_num_gpus, config.rollout.num_gpus, config.replay.num_gpus)
    return any(asks) or config.model.device.startswith("cuda")


def assumed_basis(config: RunConfig, card: Card) -> Basis:
    """Returns the rates of a card's data sheet, at assumed utilisations."""
    return Basis(card_rates(card, images=math.ceil(config.data.batch_size / config.runtime.learner_processes)))


def measured_basis(config: RunConfig, card: Card, measured: Path) -> Basis:
    """Returns the rates of a file, or of a run directory's steps; assumed ones where it has none.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    assumed, source = assumed_basis(config, card), f"measured: {measured}"
    if not measured.is_dir():
        rates, known = read_rates(measured, assumed.rates)
        return Basis(rates, known, source)
    ran = load_run_config(measured)
    steps = measured_run(measured, ran)
    with setting(ran, card, assumed_basis(ran, card)) as of_run:
        rates = rates_from(steps, of_run.work, what=f"{steps.num_steps} steps of {measured}")
    return Basis(rates, steps.known, source)


def calibrated_basis(config: RunConfig, card: Card, num_steps: int) -> tuple[Basis, Measured, int]:
    """Returns the rates of a few real steps of this configuration in this process, what they were like, and the
    process's peak bytes.

    Raises:
        UserError: model or data cannot be used.
    """
    serial = config.model_copy(update={"runtime": config.runtime.model_copy(update={"kind": "serial"})})
    steps, peak = measure_now(config, num_steps)
    with setting(serial, card, assumed_basis(serial, card)) as here:
        rates = rates_from(steps, here.work, what=f"{num_steps} steps now, everything in one process")
    return Basis(rates, steps.known, "measured: the same steps"), steps, peak
