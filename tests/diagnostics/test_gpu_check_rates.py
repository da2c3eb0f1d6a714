"""Rates that check-gpu measures, and estimates with them."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saga_dist.cli.main import app
from saga_dist.diagnostics.gpu_check import runner
from saga_dist.diagnostics.gpu_check.isolation import Outcome
from saga_dist.diagnostics.gpu_check.rates import RATE_OF, measured_rates
from saga_dist.diagnostics.gpu_check.sizes import SIZES
from saga_dist.estimate.rates import CARDS, Rates, card_rates, read_rates

ROOT = Path(__file__).resolve().parents[2]
RESULTS = {
    "environment": {"device": "NVIDIA H200"},
    "learner": {"encoder_flops_per_s": 3e14, "backward_flops_per_s": 2e14, "update_bytes_per_s": 2e12},
    "replay": {"flops_per_s": 4e14, "program": "packed"},
    "engine": {"tokens_per_s": 9000.0},
}


def test_rates_are_those_of_the_sections(tmp_path: Path) -> None:
    rates = measured_rates(RESULTS, SIZES["8b"])
    assert {name: rate["value"] for name, rate in rates.items()} == {
        "encoder": 3e14, "backward": 2e14, "update": 2e12, "replay": 4e14, "rollout_tokens": 9000.0
    }  # fmt: skip
    assert rates["replay"]["source"] == (
        "measured: saga-dist check-gpu on NVIDIA H200, random weights of Qwen3-VL-8B-Instruct, section replay"
    )
    assert RATE_OF.keys() <= {field.name for field in fields(Rates)}
    assert list(measured_rates({"replay": RESULTS["replay"]}, SIZES["tiny"])) == ["replay"]


def test_estimate_reads_the_rates_and_keeps_the_others(tmp_path: Path) -> None:
    check = runner.CheckRun("8b", tmp_path, limit_s=60)
    check.results += [runner.SectionResult(name, "8b", Outcome(1.0, found)) for name, found in RESULTS.items()]
    file = check.write_rates()
    assert file == tmp_path / "rates.json"
    assumed = card_rates(CARDS["h200"], images=64)
    rates, inputs = read_rates(file, assumed)
    assert (rates.encoder.value, rates.replay.range.low, rates.rollout_tokens.value) == (3e14, 4e14, 9000.0)
    assert (rates.decode, rates.link, rates.encode_overhead) == (assumed.decode, assumed.link, assumed.encode_overhead)
    assert inputs == {}


def test_without_a_rate_no_file_is_written(tmp_path: Path) -> None:
    check = runner.CheckRun("8b", tmp_path, limit_s=60)
    check.results.append(runner.SectionResult("learner", "8b", Outcome(1.0, error="out of memory")))
    assert check.write_rates() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_measured_rates_change_an_estimate_and_are_named_in_it(tmp_path: Path) -> None:
    check = runner.CheckRun("8b", tmp_path, limit_s=60)
    check.results += [runner.SectionResult(name, "8b", Outcome(1.0, found)) for name, found in RESULTS.items()]
    check.write_rates()
    config = str(ROOT / "configs" / "cub.toml")
    seconds = []
    for arguments in ([], ["--measured", str(tmp_path / "rates.json")]):
        file = tmp_path / "estimate.json"
        done = CliRunner().invoke(app, ["estimate", config, "--card", "h200", "--json", str(file), *arguments])
        assert done.exit_code == 0, done.output
        seconds.append(json.loads(file.read_text())["seconds"])
    for role in ("encode", "rollout", "replay", "update"):
        assert seconds[0][role] != pytest.approx(seconds[1][role], rel=0.01)
    assert seconds[1]["replay"] == pytest.approx(seconds[0]["replay"] * 0.4 * 989e12 / 4e14, rel=1e-3)
    assert done.output.count("measured: saga-dist check-gpu on NVIDIA H200") == len(RATE_OF)
    assert "(assumed)" in done.output
