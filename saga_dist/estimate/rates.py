"""How fast and how large the devices are: every number with its source, measured or assumed.

Without a measurement a rate is the data sheet's peak times a utilisation with a range; all three are named wherever the
rate is printed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from saga_dist.errors import ConfigError
from saga_dist.estimate.assumptions import ENGINE_STEP_S, IMAGE_S, UTILISATIONS, Assumption
from saga_dist.estimate.ranges import Range

GB = 1e9
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Card:
    """One device, as its data sheet says."""

    name: str
    memory: float
    """Bytes that programs may use."""
    operations: float
    """Per second, bfloat16, dense."""
    bandwidth: float
    """Bytes per second of its memory."""
    link: float
    """Bytes per second to another card of the node."""
    on_gpu: bool = True


CARDS = {
    "a100": Card("A100 SXM 80 GB", 79.1 * GIB, 312e12, 2039 * GB, 300 * GB),
    "h100": Card("H100 SXM 80 GB", 79.1 * GIB, 989e12, 3350 * GB, 450 * GB),
    "h200": Card("H200 SXM 141 GB", 139.7 * GIB, 989e12, 4800 * GB, 450 * GB),
    "b200": Card("B200 180 GB", 178.3 * GIB, 2250e12, 8000 * GB, 900 * GB),
    "l40s": Card("L40S 48 GB", 44.4 * GIB, 362e12, 864 * GB, 32 * GB),
}
"""NVIDIA's data sheets: dense bfloat16, one direction of the link; memory is about what CUDA reports of such a card."""

PAPERS_CARD = "h200"


@dataclass(frozen=True, slots=True)
class Rate:
    """A number, where it comes from, and the range in which it plausibly lies."""

    value: float
    source: str
    low: float | None = None
    """None, like ``high``, where the number was measured."""
    high: float | None = None

    @property
    def range(self) -> Range:
        """The number with its bounds, which are the number itself where it was measured."""
        return Range(self.value, *(self.value if bound is None else bound for bound in (self.low, self.high)))


NOT_MEASURED = Rate(0.0, "not measured")


@dataclass(frozen=True, slots=True)
class Rates:
    """What turns operations and bytes into seconds."""

    encoder: Rate
    """Operations per second of the tower's forward pass."""
    backward: Rate
    """Operations per second of its backward pass."""
    replay: Rate
    """Operations per second of replay."""
    prefill: Rate
    """Operations per second of the engine on prompts."""
    decode: Rate
    """Bytes per second of weights and cache that the engine reads while it generates."""
    decode_operations: Rate
    """Operations per second while it generates, if it does not wait for memory."""
    engine_step: Rate
    """Seconds of every engine step besides."""
    update: Rate
    """Bytes per second of the optimizer."""
    link: Rate
    """Bytes per second between processes of a learner."""
    encode_overhead: Rate
    """Seconds a micro-batch besides: reading images, preprocessing."""
    rollout_tokens: Rate = NOT_MEASURED
    """Generated tokens per second of one worker, all in all; where measured, the engine's four rates are unread."""

    def fastest(self) -> Rates:
        """Returns the rates with every assumed one at the end of its range that makes a run short."""
        return self._at_one_end(fast=True)

    def slowest(self) -> Rates:
        """Returns the rates with every assumed one at the end of its range that makes a run long."""
        return self._at_one_end(fast=False)

    def _at_one_end(self, *, fast: bool) -> Rates:
        ends = {}
        for field in fields(self):
            rate: Rate = getattr(self, field.name)
            upper = fast != (field.name in DURATIONS)
            ends[field.name] = replace(rate, value=rate.range.high if upper else rate.range.low)
        return Rates(**ends)


DURATIONS = ("engine_step", "encode_overhead")
"""Rates in seconds, of which the low end of a range is the fast one."""


def card_rates(card: Card, *, images: int) -> Rates:
    """Returns the rates of a card by its data sheet and the assumed utilisations.

    Args:
        card: the device.
        images: of one micro-batch and process, for the time to read them.
    """

    def share(name: str, peak: float, what: str) -> Rate:
        used = UTILISATIONS[name]
        source = f"{card.name}: {what} x {used.value:.0%} (assumed), {used.low:.0%} to {used.high:.0%}: {used.reason}"
        return Rate(peak * used.value, source, peak * used.low, peak * used.high)

    def seconds(assumed: Assumption, count: int, what: str) -> Rate:
        source = (
            f"assumed: {1000 * assumed.value:g} ms {what}, {1000 * assumed.low:g} to {1000 * assumed.high:g}: "
            f"{assumed.reason}"
        )
        return Rate(count * assumed.value, source, count * assumed.low, count * assumed.high)

    product = f"{card.operations / 1e12:.4g} TFLOP/s"
    memory = f"{card.bandwidth / GB:,.4g} GB/s"
    return Rates(
        encoder=share("encoder", card.operations, product),
        backward=share("backward", card.operations, product),
        replay=share("replay", card.operations, product),
        prefill=share("prefill", card.operations, product),
        decode=share("decode", card.bandwidth, memory),
        decode_operations=share("decode_operations", card.operations, product),
        engine_step=seconds(ENGINE_STEP_S, 1, "an engine step"),
        update=share("update", card.bandwidth, memory),
        link=share("link", card.link, f"{card.link / GB:,.4g} GB/s"),
        encode_overhead=seconds(IMAGE_S, images, "an image"),
    )


def this_machine() -> Card:
    """Returns this machine's processor as a card: a product and a copy, timed here and now on torch's threads."""
    size, megabytes = 768, 64
    left, right = torch.randn(size, size), torch.randn(size, size)
    block = torch.ones(megabytes << 18)
    product_s = _best(lambda: left @ right)
    copy_s = _best(block.clone)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    bandwidth = 2 * block.nbytes / copy_s
    name = f"this processor on {torch.get_num_threads()} threads, a product and a copy timed now"
    return Card(name, float(pages), 2.0 * size**3 / product_s, bandwidth, bandwidth, on_gpu=False)


def choose_card(name: str, *, wants_gpu: bool) -> Card:
    """Returns the card to reckon with.

    Args:
        name: a key of ``CARDS``, ``cpu``, or ``auto``: the GPU that is here; without one the paper's card where the
            configuration wants GPUs, else this processor.
        wants_gpu: whether it does.

    Raises:
        ConfigError: no such card.
    """
    present = present_card() if name == "auto" else None
    if present is not None and not present.operations:
        raise ConfigError(
            f"the GPU here is a {present.name}, whose data sheet is not known",
            expected=f"--card with one of {', '.join(CARDS)}",
            fix="choose the nearest, and measure with --calibrate",
        )
    if present is not None:
        return present
    if name == "auto":
        name = PAPERS_CARD if wants_gpu else "cpu"
    if name == "cpu":
        return this_machine()
    if name not in CARDS:
        raise ConfigError(f"--card {name}", expected=f"auto, cpu, {', '.join(CARDS)}")
    return CARDS[name]


def present_card() -> Card | None:
    """Returns the first GPU of this machine, with the speed of its data sheet where that is known; None without one."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    known = next((card for key, card in CARDS.items() if key in properties.name.lower()), None)
    unknown = Card(properties.name, 0.0, 0.0, 0.0, 0.0)
    return replace(known or unknown, name=properties.name, memory=float(properties.total_memory))


def read_rates(path: Path, rates: Rates) -> tuple[Rates, dict[str, float]]:
    """Returns ``rates`` with those of a measurement in their places, and what else was measured.

    Args:
        path: JSON that ``estimate --calibrate --json`` wrote, or one in its form: ``{"rates": {name: {"value": …,
            "source": …}}, "measured": {"contributing_share": …, "completion_tokens": …}}``; a rate may have ``low``
            and ``high``.
        rates: where it says nothing.

    Raises:
        ConfigError: it cannot be read, or holds something else.
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
    wrong = [name for name, rate in found.items() if name not in names or not _is_plausible(rate.range)]
    if wrong:
        raise ConfigError(f"rate {wrong[0]!r}", where=str(path), expected=f"numbers of {', '.join(sorted(names))}")
    return replace(rates, **found), measured


def as_json(rates: Rates) -> dict[str, Any]:
    """Returns the rates as plain values, in the form that ``read_rates`` takes."""
    return asdict(rates)


def _read_rate(rate: Mapping[str, Any]) -> Rate:
    low, high = (None if rate.get(name) is None else float(rate[name]) for name in ("low", "high"))
    return Rate(float(rate["value"]), str(rate["source"]), low, high)


def _is_plausible(rate: Range) -> bool:
    return 0 <= rate.low <= rate.value <= rate.high < float("inf")


def _best(work: Any, repeats: int = 5) -> float:
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
