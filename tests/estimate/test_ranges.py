"""Ranges: assumed rates at both ends of theirs, by hand, and how many digits are printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saga_dist.cli.main import app
from saga_dist.config import load_config
from saga_dist.errors import ConfigError
from saga_dist.estimate import planner
from saga_dist.estimate.assumptions import ENGINE_STEP_S, IMAGE_S, LONGEST, UTILISATIONS
from saga_dist.estimate.formatting import number, size
from saga_dist.estimate.operations import OPTIMIZER_BYTES, encoder_backward, encoder_forward
from saga_dist.estimate.ranges import Range
from saga_dist.estimate.rates import CARDS, Rate, card_rates, read_rates
from saga_dist.estimate.steps import Allocation, step_times

ROOT = Path(__file__).resolve().parents[2]
CUB = ROOT / "configs" / "cub.toml"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00123, "0.0012"), (0.996, "1.0"), (9.96, "10"), (19.8, "20"), (123, "120"), (1742, "1,700")],
)
def test_two_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (1234, "1.23 kB"), (104.4e9, "104 GB"), (999.6e9, "1,000 GB")]
)
def test_counted_bytes_have_three_digits(count: float, text: str) -> None:
    assert size(count) == text


def test_a_range_reads_as_its_value_and_its_ends() -> None:
    assert str(Range(1.52, 1.08, 2.77)) == "1.5 (1.1–2.8)"
    assert str(Range(1.52, 1.52, 1.52)) == "1.5"
    assert Range(2.0, 1.0, 8.0) * 3.0 == Range(6.0, 3.0, 24.0)
    assert 16.0 / Range(2.0, 1.0, 8.0) == Range(8.0, 2.0, 16.0)


def test_fast_and_slow_ends() -> None:
    rates = card_rates(CARDS["h200"], images=10)
    fast, slow = rates.fastest(), rates.slowest()
    assert (fast.replay.value, slow.replay.value) == pytest.approx((0.5 * 989e12, 0.2 * 989e12))
    assert (fast.engine_step.value, slow.engine_step.value) == (0.001, 0.008)  # seconds: the low end is the fast one
    assert (fast.encode_overhead.value, slow.encode_overhead.value) == pytest.approx((0.02, 0.2))
    assert (fast.longest.value, slow.longest.value) == (1.0, 1.5)
    measured = replace(rates, rollout_tokens=Rate(700.0, "measured"))
    assert measured.fastest().rollout_tokens.value == measured.slowest().rollout_tokens.value == 700.0


def test_bounds_of_a_step_by_hand() -> None:
    config = load_config(CUB)
    card = CARDS["h200"]
    with planner.plan_inputs(config, card, planner.assumed_rates(config, card)) as plan_inputs:
        work = plan_inputs.work
        times = step_times(work, Allocation(1, 1, 0, shared=True))
    batches, tower = work.dynamic_sampling.micro_batches_mean, work.shape.tower
    backward = encoder_backward(tower, checkpointing=True)
    moved = OPTIMIZER_BYTES * work.learner.trainable.params
    for share, moving, image_s, end in ((0.5, 0.8, 0.002, "low"), (0.2, 0.4, 0.020, "high")):
        encode = batches * 64 * encoder_forward(tower) / (share * 989e12)
        update = batches * 64 * backward / (share * 989e12) + moved / (moving * 4.8e12)
        assert getattr(times.range("encode"), end) == pytest.approx(encode)
        assert getattr(times.range("reading"), end) == pytest.approx(batches * 64 * image_s / 2), "two threads"
        assert getattr(times.range("update"), end) == pytest.approx(update)
    assert times.range("sync") == Range(times.expected.sync, times.fastest.sync, times.slowest.sync)


def test_every_assumption_lies_in_its_range_and_says_why() -> None:
    for assumed in (*UTILISATIONS.values(), ENGINE_STEP_S, IMAGE_S, LONGEST):
        assert 0 < assumed.low < assumed.value < assumed.high
        assert assumed.reason


def test_hours_and_cost_are_ranges(tmp_path: Path) -> None:
    file = tmp_path / "cub.json"
    done = CliRunner().invoke(app, ["estimate", str(CUB), "--gpus", "1", "--price", "3", "--json", str(file)])
    assert done.exit_code == 0, done.output
    content = json.loads(file.read_text())
    plan = content["plans"][0]
    assert plan["hours_low"] < plan["hours"] < plan["hours_high"]
    assert plan["seconds_high"] == pytest.approx(content["seconds_high"]["sync"])
    assert plan["cost_high"] == pytest.approx(3 * plan["hours_high"])
    assert str(Range(plan["hours"], plan["hours_low"], plan["hours_high"])) in done.output
    assert str(Range(plan["cost"], plan["cost_low"], plan["cost_high"])) in done.output


def test_a_range_that_does_not_hold_its_value_is_refused(tmp_path: Path) -> None:
    file, rates = tmp_path / "rates.json", card_rates(CARDS["h200"], images=4)
    file.write_text(json.dumps({"rates": {"replay": {"value": 2.0, "source": "guess", "low": 1.0, "high": 3.0}}}))
    assert read_rates(file, rates)[0].replay == Rate(2.0, "guess", 1.0, 3.0)
    file.write_text(json.dumps({"rates": {"replay": {"value": 4.0, "source": "guess", "low": 1.0, "high": 3.0}}}))
    with pytest.raises(ConfigError, match="rate 'replay'"):
        read_rates(file, rates)
