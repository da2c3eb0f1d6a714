"""An estimate against a really run short training: bytes must agree, seconds are printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saga_dist.cli.main import app
from saga_dist.config import RunConfig, load_config
from saga_dist.errors import ConfigError
from saga_dist.estimate import planner
from saga_dist.estimate.measure import steps_of_run
from saga_dist.estimate.rates import Rates, as_json, card_rates, cpu_card, read_rates
from saga_dist.runtime.run import train
from saga_dist.wire import groups_to_batch, read_recording

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    "runtime.kind=serial",
    "rollout.engine=transformers",
    "rollout.pairs_per_batch=8",
    "rollout.max_tokens=60",
    "run.steps=4",
    "checkpoint.every_steps=4",
    "data.birds.val_images_per_class=2",
    "data.birds.test_images_per_class=2",
    "data.birds.probe_images=0",
    "logging.tensorboard=false",
]


def config_with(*overrides: str) -> RunConfig:
    return load_config(ROOT / "configs" / "birds.toml", [*SHORT, *overrides])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training with the stand-in, done."""
    directory = tmp_path_factory.mktemp("runs") / "short"
    train(config_with(), directory)
    return directory


def test_bytes_and_seconds_of_a_short_training(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rates from a run with groups of eight, for a run with groups of four."""
    config, card = config_with("rollout.group_size=4"), cpu_card()
    directory = tmp_path / "four"
    train(config, directory)
    real = steps_of_run(directory, config)
    with planner.plan_inputs(config, card, planner.measured_rates(config, card, run)) as plan_inputs:
        found = planner.estimate(plan_inputs)
        work = plan_inputs.work
    for role, seconds in real.seconds.items():
        expected = float(getattr(found.configured_time, role))
        with capsys.disabled():
            line = f"{role}: estimated {expected:.3f} s, run {seconds:.3f} s, ratio {expected / seconds:.2f}\n"
            sys.stdout.write(line)
    checkpoint = directory / "checkpoints" / "step_00000004"
    on_disk = sum(file.stat().st_size for file in checkpoint.iterdir())
    learner = work.learner
    assert learner.weights + learner.optimizer == pytest.approx(on_disk, rel=0.1)
    groups = [group for file in sorted((directory / "rollouts").iterdir()) for group in read_recording(file)]
    assert len(groups) == 4 * 8
    # Recorded groups, at the length that was measured, within the letters of a token.
    assert 0.5 < found.payloads.group * len(groups) / groups_to_batch(groups).nbytes < 2
    assert work.token_counts.completion == steps_of_run(run, config_with()).completion_tokens
    assert work.dynamic_sampling.contributing_share == steps_of_run(run, config_with()).contributing_share


def test_a_runs_rates_give_back_its_own_seconds(run: Path) -> None:
    config, card = config_with(), cpu_card()
    real = steps_of_run(run, config)
    assert (real.num_steps, real.micro_batches) == (3, 1.0)
    with planner.plan_inputs(config, card, planner.measured_rates(config, card, run)) as plan_inputs:
        own = planner.estimate(plan_inputs).configured_time
    assert own.encode == pytest.approx(real.encode_s)
    assert own.rollout == pytest.approx(real.rollout_s, rel=1e-3)
    # As many groups train as the share says, and completions that train are as long as all.
    assert own.replay * real.replayed_groups > 0


def test_the_command_calibrates_writes_and_reads(tmp_path: Path) -> None:
    file, again = tmp_path / "rates.json", tmp_path / "again.json"
    config = str(ROOT / "configs" / "birds.toml")
    done = CliRunner().invoke(app, ["estimate", config, *SHORT, "--calibrate", "--json", str(file)])
    assert done.exit_code == 0, done.output
    for token_counts in ("parts", "operations", "seconds of a step", "memory:", "how far the assumptions were off"):
        assert token_counts in done.output
    content = json.loads(file.read_text())
    assert content["rates"]["replay"]["source"] == "measured: 3 steps now, everything in one process"
    assert content["measured"]["completion_tokens"] > 1
    assert content["plans"] == []
    done = CliRunner().invoke(app, ["estimate", config, *SHORT, "--measured", str(file), "--json", str(again)])
    assert done.exit_code == 0, done.output
    second = json.loads(again.read_text())
    assert second["rates"] == content["rates"]
    assert second["inputs"]["completion_tokens"] == content["measured"]["completion_tokens"]
    assert second["seconds"] == pytest.approx(content["seconds"])


def test_a_gpu_run_on_a_machine_without_one(tmp_path: Path) -> None:
    file = tmp_path / "cub.json"
    config = str(ROOT / "configs" / "cub.toml")
    arguments = ["estimate", config, "--gpus", "1", "--gpus", "8", "--price", "2", "--json", str(file)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "no config.json of it on this machine" in done.output
    assert "(assumed)" in done.output
    content = json.loads(file.read_text())
    assert content["parameters"]["encoder"] + content["parameters"]["backbone"] == 8_767_123_696
    assert [plan["gpus"] for plan in content["plans"]] == [1, 1, 8, 8]
    assert all(plan["cost"] == pytest.approx(2 * plan["gpus"] * plan["hours"]) for plan in content["plans"])
    assert content["plans"][3]["seconds"] < content["plans"][0]["seconds"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "holds something else"),
        ('{"rates": []}', "holds something else"),
        ('{"rates": {"speed": {"value": 1, "source": ""}}}', "rate 'speed'"),
        ('{"rates": {"replay": {"value": -1, "source": ""}}}', "rate 'replay'"),
        ('{"rates": {"replay": {"value": NaN, "source": ""}}}', "rate 'replay'"),
    ],
)
def test_a_file_of_rates_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rates.json"
    file.write_text(text)
    rates: Rates = card_rates(cpu_card(), images=4)
    with pytest.raises(ConfigError, match=message) as caught:
        read_rates(file, rates)
    assert "\n" not in str(caught.value)
    file.write_text(json.dumps({"rates": as_json(rates)}))
    assert read_rates(file, rates) == (rates, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_rates(tmp_path / "none.json", rates)


def test_a_card_that_nobody_knows() -> None:
    done = CliRunner().invoke(app, ["estimate", str(ROOT / "configs" / "birds.toml"), "--card", "abacus"])
    assert isinstance(done.exception, ConfigError)
    assert "--card abacus" in str(done.exception)
