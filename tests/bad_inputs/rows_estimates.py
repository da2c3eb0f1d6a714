"""Measured rates and inputs that no run can have, and notices that a node is taken away."""

from __future__ import annotations

import json
from typing import Any

from bad_inputs.row import BadInput, Workspace

from saga_dist.estimate.rates import CARDS, card_rates, read_rates
from saga_dist.runtime.ray.draining import DrainWatch


def measured_row(name: str, kind: str, content: dict[str, Any], *says: str) -> BadInput:
    """Returns a row of a file of measured rates."""

    def act(workspace: Workspace) -> Any:
        file = workspace.folder / "rates.json"
        file.write_text(json.dumps(content))
        return read_rates(file, card_rates(CARDS["h200"], images=64))

    return BadInput(name, kind, act, ("rates.json: ", *says))


def rate(name: str, rate_name: str, *says: str, **numbers: float) -> BadInput:
    """Returns a row of one rate."""
    rates = {rate_name: {"source": "measured", **numbers}}
    return measured_row(name, f"measured rate, {says[-1]}", {"rates": rates}, f"rate '{rate_name}': ", *says)


def measured_input(name: str, key: str, value: float, *says: str) -> BadInput:
    """Returns a row of one measured input."""
    content = {"rates": {}, "measured": {key: value}}
    return measured_row(name, "measured input of an estimate", content, f"measured {key} = ", *says)


def notice(name: str, listed: dict[str, int], *says: str) -> BadInput:
    """Returns a row of draining nodes; the learner is on node L."""

    def act(workspace: Workspace) -> Any:
        DrainWatch([], heartbeat_s=30, draining=lambda: listed, with_state=lambda: {"L"}).poll()

    return BadInput(name, "notice that a node is taken away", act, says, outcome="note")


ROWS = [
    rate("the longest completion is shorter than the mean", "longest", "0.8, 0.8 to 0.8", "at least 1", value=0.8),
    rate("the longest completion may be shorter", "longest", "1.2, 0.9 to 2", "at least 1", value=1.2, low=0.9, high=2),
    rate("a measured rate of 0, by which work is divided", "encoder", "0, 0 to 0", "above 0", value=0.0),
    rate("a measured rate that may be 0", "decode", "5, 0 to 9", "above 0", value=5.0, low=0.0, high=9.0),
    rate("a measured rate outside of its range", "replay", "9, 1 to 5", "above 0", value=9.0, low=1.0, high=5.0),
    rate("a negative overhead of an engine step", "engine_step", "-0.1, -0.1", "at least 0", value=-0.1),
    measured_input("completions without tokens", "completion_tokens", 0.0, "0; expected a number above 0"),
    measured_input("completions of less than no tokens", "completion_tokens", -3.0, "-3; expected a number above 0"),
    measured_input("a share of groups above 1", "contributing_share", 1.5, "1.5; expected a share, 0 to 1"),
    measured_input("a share of groups that is no number", "contributing_share", float("nan"), "nan; expected a share"),
    notice("a node is to go", {"A": 1_000_000_000_000}, "node A is about to be taken away at 01:46:40 UTC"),
    notice("a node is to go at no certain time", {"A": 0}, "node A is about to be taken away; its workers get no more"),
    notice("the learner's node is to go", {"L": 0}, "a checkpoint is written as soon as a step allows it"),
]
