"""Rates of devices: throughput, bandwidth and overheads, each with its source, measured or assumed.

Without a measurement a rate is the peak of the data sheet times an assumed utilisation that has a range. The printed
source of a rate names peak, utilisation and range.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from saga_dist.errors import ConfigError
from saga_dist.estimate.assumptions import ENGINE_STEP_S, IMAGE_S, LONGEST, UTILISATIONS, Assumption
from saga_dist.estimate.ranges import Range

GB = 1e9
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Card:
    """Data sheet of one kind of device."""

    name: str
    """Name of the device, for reports."""
    memory: float
    """Bytes of memory that programs can allocate."""
    operations: float
    """Peak floating-point operations per second: dense, bfloat16."""
    bandwidth: float
    """Peak memory bandwidth, bytes per second."""
    link: float
    """Peak bandwidth to another card of the node, bytes per second in one direction."""
    on_gpu: bool = True
    """False for the card that stands for this machine's CPU."""


CARDS = {
    "a100": Card("A100 SXM 80 GB", 79.1 * GIB, 312e12, 2039 * GB, 300 * GB),
    "h100": Card("H100 SXM 80 GB", 79.1 * GIB, 989e12, 3350 * GB, 450 * GB),
    "h200": Card("H200 SXM 141 GB", 139.7 * GIB, 989e12, 4800 * GB, 450 * GB),
    "b200": Card("B200 180 GB", 178.3 * GIB, 2250e12, 8000 * GB, 900 * GB),
    "l40s": Card("L40S 48 GB", 44.4 * GIB, 362e12, 864 * GB, 32 * GB),
    "4090": Card("RTX 4090 24 GB", 23.6 * GIB, 165e12, 1008 * GB, 32 * GB),
}
"""NVIDIA's data sheets, by name of ``--card``. Operations are dense bfloat16, links count one direction, and memory is
about what CUDA reports for such a card."""

PAPER_CARD = "h200"
"""The card that the paper's runs used."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate with its source and its plausible range."""

    value: float
    """Expected value; its unit depends on the rate."""
    source: str
    """Source of the value, as printed with it."""
    low: float | None = None
    """Lower end of the plausible range; None when the value was measured."""
    high: float | None = None
    """Upper end of the plausible range; None when the value was measured."""

    @property
    def range(self) -> Range:
        """The value with its range; a measured value is both ends of its range."""
        return Range(self.value, *(self.value if bound is None else bound for bound in (self.low, self.high)))


NOT_MEASURED = Rate(0.0, "not measured")
"""Value of an optional rate that was not measured."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates that convert operations and bytes into seconds."""

    encoder: Rate
    """Tower, forward pass: operations per second."""
    backward: Rate
    """Tower, backward pass: operations per second."""
    replay: Rate
    """Replay, forward and backward: operations per second."""
    prefill: Rate
    """Engine, prefill: operations per second."""
    decode: Rate
    """Engine, decode: bytes of weights and KV cache read per second."""
    decode_operations: Rate
    """Engine, decode, when it is bound by compute and not by memory: operations per second."""
    engine_step: Rate
    """Engine, decode: seconds of overhead per step."""
    update: Rate
    """Optimizer: bytes of memory traffic per second."""
    link: Rate
    """Learner processes: bytes per second between two of them."""
    encode_overhead: Rate
    """Learner: seconds per micro-batch to read and preprocess images on one core."""
    rollout_tokens: Rate = NOT_MEASURED
    """Rollout worker: generated tokens per second, prefill and overheads included. When it is measured, ``prefill``,
    ``decode``, ``decode_operations``, ``engine_step`` and ``longest`` are not used."""
    longest: Rate = Rate(1.0, "all completions are equally long")
    """Engine: tokens of the longest completion of a batch, divided by the mean; at least 1."""

    def fastest(self) -> Rates:
        """Returns the rates with every assumed one at the fast end of its range."""
        return self._at_bounds(fast=True)

    def slowest(self) -> Rates:
        """Returns the rates with every assumed one at the slow end of its range."""
        return self._at_bounds(fast=False)

    def _at_bounds(self, *, fast: bool) -> Rates:
        bounds = {}
        for field in fields(self):
            rate: Rate = getattr(self, field.name)
            upper = fast != (field.name in DURATIONS)
            bounds[field.name] = replace(rate, value=rate.range.high if upper else rate.range.low)
        return Rates(**bounds)


DURATIONS = ("engine_step", "encode_overhead", "longest")
"""Names of the rates that are durations, or multiples of one: the low end of their range is the fast one."""


_LOWEST = {
    "longest": "at least 1",
    "engine_step": "at least 0",
    "encode_overhead": "at least 0",
    "rollout_tokens": "at least 0",
}
"""Lowest value of the rates that nothing is divided by; any other is above 0."""


def card_rates(card: Card, *, images: int) -> Rates:
    """Returns rates from a card's data sheet and the assumed utilisations.

    Args:
        card: the device.
        images: images of one micro-batch in one learner process, for the time to read them.
    """

    def utilised(name: str, peak: float, what: str) -> Rate:
        share = UTILISATIONS[name]
        source = (
            f"{card.name}: {what} x {share.value:.0%} (assumed), {share.low:.0%} to {share.high:.0%}: {share.reason}"
        )
        return Rate(peak * share.value, source, peak * share.low, peak * share.high)

    def seconds(assumed: Assumption, count: int, what: str) -> Rate:
        source = (
            f"assumed: {1000 * assumed.value:g} ms {what}, {1000 * assumed.low:g} to {1000 * assumed.high:g}: "
            f"{assumed.reason}"
        )
        return Rate(count * assumed.value, source, count * assumed.low, count * assumed.high)

    longest = f"assumed: {LONGEST.low:g} to {LONGEST.high:g}: {LONGEST.reason}"
    compute = f"{card.operations / 1e12:.4g} TFLOP/s"
    memory = f"{card.bandwidth / GB:,.4g} GB/s"
    return Rates(
        encoder=utilised("encoder", card.operations, compute),
        backward=utilised("backward", card.operations, compute),
        replay=utilised("replay", card.operations, compute),
        prefill=utilised("prefill", card.operations, compute),
        decode=utilised("decode", card.bandwidth, memory),
        decode_operations=utilised("decode_operations", card.operations, compute),
        engine_step=seconds(ENGINE_STEP_S, 1, "an engine step"),
        update=utilised("update", card.bandwidth, memory),
        link=utilised("link", card.link, f"{card.link / GB:,.4g} GB/s"),
        encode_overhead=seconds(IMAGE_S, images, "an image"),
        longest=Rate(LONGEST.value, longest, LONGEST.low, LONGEST.high),
    )


def cpu_card() -> Card:
    """Returns this machine's CPU as a card; a float32 matrix product and a copy are timed on torch's threads."""
    size, megabytes = 768, 64
    left, right = torch.randn(size, size), torch.randn(size, size)
    block = torch.ones(megabytes << 18)
    product_s = _shortest_s(lambda: left @ right)
    copy_s = _shortest_s(block.clone)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bandwidth = 2 * block.nbytes / copy_s  # a copy reads and writes every byte
    name = f"this processor on {torch.get_num_threads()} threads, a product and a copy timed now"
    return Card(name, float(memory), 2.0 * size**3 / product_s, bandwidth, bandwidth, on_gpu=False)


def choose_card(name: str, *, wants_gpu: bool) -> Card:
    """Returns the card to plan for.

    Args:
        name: a key of ``CARDS``, ``cpu``, or ``auto``. ``auto`` is this machine's GPU; without a GPU it is the paper's
            card when the configuration requests GPUs, and otherwise this machine's CPU.
        wants_gpu: True when the configuration requests GPUs.

    Raises:
        ConfigError: the name is unknown, or this machine's GPU has no data sheet here.
    """
    gpu = local_gpu() if name == "auto" else None
    if gpu is not None and not gpu.operations:
        raise ConfigError(
            f"the GPU here is a {gpu.name}, whose data sheet is not known",
            expected=f"--card with one of {', '.join(CARDS)}",
            fix="choose the nearest, and measure with --calibrate",
        )
    if gpu is not None:
        return gpu
    if name == "auto":
        name = PAPER_CARD if wants_gpu else "cpu"
    if name == "cpu":
        return cpu_card()
    if name not in CARDS:
        raise ConfigError(f"--card {name}", expected=f"auto, cpu, {', '.join(CARDS)}")
    return CARDS[name]


def local_gpu() -> Card | None:
    """Returns this machine's first GPU, with the rates of its data sheet, or zeros when it has none in ``CARDS``.

    Returns None on a machine without a GPU.
    """
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    known = next((card for key, card in CARDS.items() if key in properties.name.lower()), None)
    unknown = Card(properties.name, 0.0, 0.0, 0.0, 0.0)
    return replace(known or unknown, name=properties.name, memory=float(properties.total_memory))


def read_rates(path: Path, rates: Rates) -> tuple[Rates, dict[str, float]]:
    """Reads measured rates from a JSON file.

    Args:
        path: file that ``estimate --calibrate --json`` wrote, or one of the same form: ``{"rates": {name: {"value": …,
            "source": …}}, "measured": {"contributing_share": …, "completion_tokens": …}}``; a rate may have ``low``
            and ``high``.
        rates: rates to keep where the file has none.

    Returns:
        rates: ``rates``, with those of the file in their places.
        inputs: the other measured values of the file, by name.

    Raises:
        ConfigError: the file cannot be read, or has another content.
    """
    expected = '{"rates": {name: {"value": number, "source": text}}}, as estimate --calibrate --json writes'
    try:
        content = json.loads(path.read_text("utf-8"))
        found = {name: _read_rate(rate) for name, rate in content["rates"].items()}
        measured = {name: float(value) for name, value in content.get("measured", {}).items()}
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=str(path), fix="check --measured") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"holds something else ({error!r})", where=str(path), expected=expected) from error
    names = {field.name for field in fields(Rates)}
    for name, rate in found.items():
        if name not in names:
            raise ConfigError(f"rate {name!r}", where=str(path), expected=f"numbers for {', '.join(sorted(names))}")
        if not _is_plausible(name, rate.range):
            what = f"rate {name!r}: {rate.value:g}, {rate.range.low:g} to {rate.range.high:g}"
            raise ConfigError(what, where=str(path), expected=f"low <= value <= high, {_LOWEST.get(name, 'above 0')}")
    if not 0 <= (share := measured.get("contributing_share", 0.0)) <= 1:
        raise ConfigError(f"measured contributing_share = {share:g}", where=str(path), expected="a share, 0 to 1")
    if not 0 < (tokens := measured.get("completion_tokens", 1.0)) < float("inf"):
        raise ConfigError(f"measured completion_tokens = {tokens:g}", where=str(path), expected="a number above 0")
    return replace(rates, **found), measured


def as_json(rates: Rates) -> dict[str, Any]:
    """Returns the rates as JSON values, in the form that ``read_rates`` reads."""
    return asdict(rates)


def _read_rate(rate: Mapping[str, Any]) -> Rate:
    low, high = (None if rate.get(name) is None else float(rate[name]) for name in ("low", "high"))
    return Rate(float(rate["value"]), str(rate["source"]), low, high)


def _is_plausible(name: str, rate: Range) -> bool:
    lowest = {"at least 1": rate.low >= 1, "at least 0": rate.low >= 0}.get(_LOWEST.get(name, ""), rate.low > 0)
    return lowest and rate.low <= rate.value <= rate.high < float("inf")


def _shortest_s(work: Callable[[], object], repeats: int = 5) -> float:
    """Returns the seconds of the fastest of several calls, after one call to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
