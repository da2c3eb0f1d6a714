"""One warning for a loss that hardly contributes, with the value that would balance it."""

from __future__ import annotations

import logging

import pytest

from saga_dist.config import ObjectiveSection
from saga_dist.training.share_monitor import ShareMonitor, advice_for_step

OUTWEIGHED = {"share/tower_dml": 0.999, "share/tower_grpo": 0.001, "share/pooler_dml": 0.5, "share/pooler_kl": 0.5}
BALANCED = {"share/tower_dml": 0.5, "share/tower_grpo": 0.5}
WITHOUT_GROUPS = {"share/tower_dml": 1.0}


def warnings_of(caplog: pytest.LogCaptureFixture, steps: list[dict[str, float]], **objective: object) -> list[str]:
    caplog.clear()
    monitor = ShareMonitor(ObjectiveSection(**{"min_share_steps": 3, **objective}))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        for metrics in steps:
            monitor.observe(metrics)
    return [record.getMessage() for record in caplog.records]


def test_one_warning_after_enough_steps_names_key_and_value(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(caplog, [OUTWEIGHED] * 2) == []
    assert warnings_of(caplog, [OUTWEIGHED] * 9, lambda_dml=2.0) == [
        "in the last 3 steps with both losses, GRPO is 0.1 % of the gradient at the tower, the metric loss the rest; "
        "objective.lambda_dml=0.002 (now 2) would make them equal"
    ]


def test_each_loss_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    both = OUTWEIGHED | {"share/pooler_dml": 0.004, "share/pooler_kl": 0.996}
    messages = warnings_of(caplog, [both] * 9)
    assert len(messages) == 2
    assert "the metric loss is 0.4 % of the gradient at the pooler" in messages[1]
    assert "objective.lambda_kl=0.004 (now 1)" in messages[1]


def test_steps_without_a_group_neither_count_nor_interrupt(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(caplog, [WITHOUT_GROUPS] * 9) == []
    assert len(warnings_of(caplog, [OUTWEIGHED, WITHOUT_GROUPS, OUTWEIGHED, WITHOUT_GROUPS, OUTWEIGHED])) == 1


def test_a_step_in_balance_starts_the_count_again_and_zero_turns_it_off(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(caplog, [OUTWEIGHED, OUTWEIGHED, BALANCED, OUTWEIGHED, OUTWEIGHED]) == []
    assert warnings_of(caplog, [OUTWEIGHED] * 9, min_share=0) == []


def test_advice_for_one_step() -> None:
    objective = ObjectiveSection()
    assert advice_for_step(objective, BALANCED | {"share/pooler_dml": 0.5, "share/pooler_kl": 0.5}) == []
    assert advice_for_step(objective, WITHOUT_GROUPS | {"share/pooler_dml": 1.0}) == [
        "GRPO had no gradient at the tower in this step; its share is not known",
        "the attention alignment had no gradient at the pooler in this step; its share is not known",
    ]
    assert len(advice_for_step(objective, OUTWEIGHED)) == 1
    # A metric-only run with a pooler without parameters.
    assert advice_for_step(ObjectiveSection(lambda_lm=0, lambda_kl=0), WITHOUT_GROUPS) == []
