"""The facts in the head of the page, and the configuration keys in which compared runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saga_dist.config import ObjectiveSection, RunConfig
from saga_dist.report.sources import RunFiles
from saga_dist.report.text import shown_name
from saga_dist.retrieval.results import Results
from saga_dist.training.training_facts import training_facts


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """Returns (name, value) of the facts in the head of the page."""
    config = run.config
    done = int(max((row["step"] for row in run.rows), default=0))
    found = [
        ("steps", f"{done} of {config.run.steps}"),
        ("data", shown_name(config.data.layout)),
        ("started from", shown_name(config.model.path)),
        ("metric loss", shown_name(config.objective.metric_loss)),
        ("losses", _losses(config.objective)),
    ]
    training = training_facts(config, run.path)
    images, size = training.images_seen, config.data.image_size
    if training.remark:
        found.append(("remark", training.remark))
    found.append(("images in all steps", f"{'not known' if images is None else f'{images:,}'}, {size} px"))
    walls = [row["step/wall_s"] for row in run.rows if "step/wall_s" in row]
    if walls:
        found.append(("a step", f"{sum(walls) / len(walls):.2f} s"))
    return [*_headline(run.results), *found]


def differing_keys(configs: Sequence[RunConfig]) -> list[tuple[str, list[str]]]:
    """Returns each key in which the configurations differ, with its value in each; the run directory is left out.

    Args:
        configs: the configurations, at least one.
    """
    flat = [_flat("", config.model_dump(mode="json")) for config in configs]
    keys = dict.fromkeys(key for one in flat for key in one)
    return [
        (shown_name(key), [shown_name(one.get(key, "–")) for one in flat])
        for key in keys
        if len({one.get(key) for one in flat}) > 1 and key != "run.directory"
    ]


def _flat(prefix: str, value: Any) -> dict[str, str]:
    """Returns the values of nested sections as text, by dotted key."""
    if not isinstance(value, dict):
        return {prefix: "" if value is None else str(value)}
    dotted = {f"{prefix}.{name}" if prefix else str(name): one for name, one in value.items()}
    return {key: text for name, one in dotted.items() for key, text in _flat(name, one).items()}


def _headline(results: Results | None) -> list[tuple[str, str]]:
    rows = [method for method in results.methods if "test" in method.splits] if results is not None else []
    if not rows:
        return []
    found = rows[-1].splits["test"]
    low, high = (100 * value for value in found.confidence_interval)
    return [("Recall@1, unseen classes", f"{100 * found.recall_at_1:.1f} % ({low:.1f}–{high:.1f})")]


def _losses(objective: ObjectiveSection) -> str:
    signal = {"grpo": "GRPO", "verdict": "verdict"}[objective.signal]
    named = ((objective.lambda_dml, "metric"), (objective.lambda_lm, signal), (objective.lambda_kl, "attention"))
    return " + ".join(f"{weight:g} × {name}" for weight, name in named if weight)
