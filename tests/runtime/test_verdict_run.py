"""A whole run on verdicts: no engine is started, and everything that reads a run reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from saga_dist.cli.doctor_checks import run_checks
from saga_dist.config import RunConfig, load_config, load_run_config
from saga_dist.data.forced_verdict import ForcedVerdict, force_verdict
from saga_dist.errors import CheckpointError
from saga_dist.estimate import planner
from saga_dist.estimate.rates import CARDS, cpu_card
from saga_dist.estimate.render import print_estimate
from saga_dist.export.card import _settings
from saga_dist.metrics.log import MetricsLog
from saga_dist.report.build import Settings, report_page, rollouts_page
from saga_dist.report.sources import open_run, read_groups
from saga_dist.retrieval.results import Results
from saga_dist.runtime import serial
from saga_dist.runtime.build import build_family, build_learner, build_replay_worker, prompt_text
from saga_dist.runtime.preflight import describe
from saga_dist.runtime.run import train
from saga_dist.types import ImagePair, VerdictTask
from saga_dist.workers import replay

pytestmark = pytest.mark.integration

VERDICT = {"signal": "verdict", "lambda_kl": 0.0, "metric_loss": "proxy_anchor", "kl_layer": 1}
ENGINE = {"engine": "vllm", "pairs_per_batch": 4}
"""The default engine, which would take long to start."""


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, write_tiny_config: Callable[..., Path]
) -> RunConfig:
    path = tmp_path_factory.mktemp("config") / "run.toml"
    return load_config(write_tiny_config(path, tiny_checkpoint, objective=VERDICT, rollout=ENGINE))


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def no_engine(_: Any) -> Any:
        raise AssertionError("a rollout worker was built")

    directory = tmp_path_factory.mktemp("runs") / "verdict"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serial, "build_rollout_worker", no_engine)
        train(config, directory)
    return directory


def test_it_trains_without_an_engine(run: Path) -> None:
    rows = [row for row in MetricsLog(run / "metrics.jsonl").rows() if "loss/verdict" in row]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["verdict/pairs"] == 4 for row in rows)
    assert Results.load(run / "results.json").backbone_unchanged


def test_the_forced_answer_is_that_of_the_runs_prompt(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def spy(tokenizer: Any, text: str, key: str) -> ForcedVerdict:
        asked.append((text, key))
        return force_verdict(tokenizer, text, key)

    monkeypatch.setattr(replay, "force_verdict", spy)
    (tokens,) = build_learner(config).encode_pairs("test", [ImagePair("p", 0, 1, 0, 0)])
    worker = build_replay_worker(config)
    for _ in range(2):
        worker.replay(VerdictTask(ImagePair("p", 0, 1, 0, 0), tokens, num_pairs_total=1), tokens)
    assert asked == [(prompt_text(config, build_family(config)), "same_species")]  # once for all pairs


def test_the_card_of_an_export_names_the_signal(run: Path) -> None:
    config = load_run_config(run)
    assert "| likelihood of the right verdict | weight 1, nothing sampled |" in _settings(config)
    grpo = config.model_copy(update={"objective": config.objective.model_copy(update={"signal": "grpo"})})
    assert "| GRPO | weight 1, 2 completions a pair |" in _settings(grpo)


def test_report_and_viewer_say_that_nothing_was_sampled(run: Path) -> None:
    page = report_page(run, Settings())
    assert "L_verdict" in page.html
    assert "1 × metric + 1 × verdict" in page.html
    assert "No recorded rollouts: the run trained without them" in rollouts_page(run, Settings(), step=None).html
    with pytest.raises(CheckpointError, match=r"no recording of step 1; expected a recorded step \(none\)"):
        read_groups(open_run(run), step=1)


def test_dry_run_names_the_signal(config: RunConfig, tmp_path: Path) -> None:
    plan = describe(config, tmp_path)
    assert "1 x proxy_anchor, 1 x verdict, 0 x attention alignment" in plan
    assert "forced, nothing sampled; 4 pairs of one micro-batch a step" in plan
    assert "vllm" not in plan


def test_doctor_forces_a_verdict(
    tiny_checkpoint: Path,
    write_tiny_config: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("saga_dist.cli.doctor_checks.VLLM_PACKAGES", ("no-such-package",))
    path = write_tiny_config(tmp_path / "run.toml", tiny_checkpoint, objective=VERDICT, rollout=ENGINE)
    assert run_checks(path, [], smoke=True) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "one pair: " in line]
    assert "p(right) 0." in line


@pytest.mark.parametrize("card", [cpu_card(), CARDS["h100"]], ids=["cpu", "gpu"])
def test_an_estimate_has_replay_and_no_rollouts(config: RunConfig, card: Any) -> None:
    with planner.plan_inputs(config, card, planner.assumed_rates(config, card)) as plan_inputs:
        found = planner.estimate(plan_inputs, (1, 4))
        work = plan_inputs.work
        assert plan_inputs.memories.rollout is None
        assert (work.dynamic_sampling.micro_batches_max, work.dynamic_sampling.trained_groups) == (1, 4.0)
        assert work.token_counts.completion == 1
        assert found.configured_time.rollout == 0
        assert found.configured_time.replay > 0
        assert found.payloads.recording(config, work.dynamic_sampling) == 0
        assert found.payloads.step == 4 * found.payloads.tokens
        assert [one.role for one in found.saturations] == ["learner", "replay"]
        if card.on_gpu:
            plan = found.plans[1][0]
            assert plan is not None and plan.allocation.rollouts == 0 and plan.allocation.gpus <= 4
        console = Console(width=200, record=True)
        print_estimate(console, found, None)
    text = console.export_text()
    assert "1 micro-batch, 4 pairs train; every pair trains, nothing is sampled" in text
    assert "recordings" not in text and "decode   " not in text.partition("rates and their sources")[0]


def test_measured_steps_give_the_rate_of_replay(config: RunConfig, run: Path) -> None:
    card = cpu_card()
    source = planner.measured_rates(config, card, run)
    assert source.rates.replay.source.startswith("measured")
    assert source.inputs == {}
