"""One warning, and one remark in the results, for a run to which the frozen MLLM contributes nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from saga_dist.config import RunConfig, load_config
from saga_dist.retrieval.results import MethodResult
from saga_dist.retrieval.training_text import training_lines
from saga_dist.training.contribution_monitor import ContributionMonitor, contributes, contribution_remark
from saga_dist.training.training_facts import training_facts

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"rollout/groups": 16.0, "rollout/contributing_share": 0.25, "rollout/reward_mean": 0.5}
IDLE = {
    "rollout/groups": 16.0,
    "rollout/contributing_share": 0.0,
    "rollout/reward_mean": 0.5,
    "rollout/unparseable_share": 0.0,
    "rollout/truncated_share": 0.0,
    "rollout/json_valid_share": 1.0,
}
WITHOUT_VERDICTS = {"rollout/unparseable_share": 1.0, "rollout/reward_mean": 0.0, "rollout/json_valid_share": 0.0}
CUT_OFF = IDLE | WITHOUT_VERDICTS | {"rollout/truncated_share": 1.0}
UNREADABLE = IDLE | WITHOUT_VERDICTS
FAILED = {"rollout/groups": 0.0}


def config(*overrides: str) -> RunConfig:
    return load_config(ROOT / "configs" / "birds.toml", ["objective.idle_steps=3", *overrides])


def warnings_of(caplog: pytest.LogCaptureFixture, steps: list[dict[str, float]], *overrides: str) -> list[str]:
    caplog.clear()
    monitor = ContributionMonitor(config(*overrides))
    with caplog.at_level(logging.WARNING):
        for metrics in steps:
            monitor.observe(metrics)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (CUT_OFF, "completions are cut off at rollout.max_tokens = 77; raise it"),
        (UNREADABLE, "no verdict can be read from the completions (0 % are JSON); check prompt.variant"),
        (IDLE | {"rollout/reward_mean": 0.0}, "all completions are without a reward"),
        (IDLE | {"rollout/reward_mean": 1.0}, "all completions are rewarded"),
        (IDLE, "the 8 completions of each pair agree; raise rollout.temperature (now 0.7) or rollout.group_size"),
        (FAILED, "workers failed on every pair; see their reasons in ledger.jsonl"),
        ({"verdict/pairs": 0.0}, "workers failed on every pair"),
    ],
    ids=["cut off", "unreadable", "all wrong", "all right", "agreement", "failures", "failures of verdicts"],
)
def test_one_warning_names_cause_and_setting(
    metrics: dict[str, float], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings_of(caplog, [metrics] * 2) == []
    (warning,) = warnings_of(caplog, [metrics] * 9, "rollout.max_tokens=77")
    assert warning.startswith("the frozen MLLM contributed nothing to the last 3 steps: ")
    assert said in warning


def test_a_step_that_contributes_starts_the_count_again(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(caplog, [IDLE, IDLE, GOOD, IDLE, IDLE]) == []
    assert len(warnings_of(caplog, [IDLE, IDLE, GOOD, IDLE, IDLE, IDLE, GOOD, IDLE, IDLE, IDLE])) == 1


def test_zero_turns_it_off_and_a_metric_loss_alone_is_not_asked(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(caplog, [IDLE] * 9, "objective.idle_steps=0") == []
    assert warnings_of(caplog, [{"loss/dml": 1.0}] * 9) == []
    assert contributes({"validation/recall_at_1": 0.5}) is None
    assert contributes({"verdict/pairs": 4.0}) is True


def test_the_remark_is_for_runs_with_few_contributions() -> None:
    assert contribution_remark([IDLE] * 9 + [GOOD], config()) is None  # a tenth
    assert contribution_remark([IDLE] * 10 + [GOOD], config()) == (
        "the frozen MLLM contributed to 1 of 11 steps: the 8 completions of each pair agree; raise rollout.temperature "
        "(now 0.7) or rollout.group_size"
    )
    assert contribution_remark([], config()) is None
    assert contribution_remark([{"loss/dml": 1.0}], config()) is None


def test_results_have_the_remark_of_the_run(tmp_path: Path) -> None:
    rows = [{"step": step, **UNREADABLE} for step in (1, 2)] + [{"step": 2, "validation/recall_at_1": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = training_facts(config("run.steps=2"), tmp_path)
    remark = "the frozen MLLM contributed to 0 of 2 steps: no verdict can be read"
    assert facts.remark is not None and facts.remark.startswith(remark)
    method = MethodResult(name="trained", splits={}, seeds=(0,), wall_s=1.0, training=facts)
    assert training_lines([method])[1].startswith(f"trained: {remark}")
    assert training_facts(config("run.steps=2"), tmp_path, pretrained=True).remark is None
    alone = config("objective.lambda_lm=0", "objective.lambda_kl=0")
    assert training_facts(alone, tmp_path).remark is None
