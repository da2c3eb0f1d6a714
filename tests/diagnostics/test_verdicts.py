from __future__ import annotations

from saga_dist.diagnostics.verdicts import EarlyLate, early_and_late


def test_fifths_by_hand() -> None:
    name = "rollout/contributing_same"
    rows = [{"step": float(step), "loss/dml": 1.0, name: float(step)} for step in range(1, 12)]  # a fifth: 2 steps
    rows += [{"step": 11.0, "validation/recall_at_1": 0.5}]
    assert early_and_late(rows) == [EarlyLate(name, 1.5, 10.5, 11)]


def test_a_single_step_is_both_ends_and_none_is_nothing() -> None:
    name = "rollout/verdict_accuracy_different"
    assert early_and_late([{"step": 1.0, name: 0.25}]) == [EarlyLate(name, 0.25, 0.25, 1)]
    assert early_and_late([{"step": 1.0, "loss/dml": 0.5}]) == []
