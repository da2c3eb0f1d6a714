"""The registry of metrics is complete: the code writes no other name, and every entry is a name that it writes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from saga_dist.errors import ConfigError
from saga_dist.metrics.registry import NUMBER, Metric, all_metrics, find_metric, metric_groups, metrics_called

PACKAGE = Path(__file__).resolve().parents[2] / "saga_dist"
WRITERS = ("training", "workers", "runtime", "checkpoint", "objectives")
"""Packages that make the metrics of a step, or parts of their names."""
SIMULATED = {"fake_workers.py", "scaling_bench.py"}
"""Modules of simulated learners, whose metrics are of no run."""
NAMES = [name for metric in all_metrics() for name in metric.names]
STAGES = {name.partition("/")[0] for name in NAMES}


def texts() -> tuple[set[str], set[str]]:
    """Returns all strings of the writers, and the patterns of all their formatted strings."""
    plain, patterns = set(), set()
    for folder in WRITERS:
        for path in (PACKAGE / folder).rglob("*.py"):
            nodes = [] if path.name in SIMULATED else list(ast.walk(ast.parse(path.read_text("utf-8"))))
            formatted = [node for node in nodes if isinstance(node, ast.JoinedStr)]
            fragments = {id(part) for node in formatted for part in node.values}
            for node in nodes:
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in fragments:
                    plain.add(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = [
                        re.escape(part.value) if isinstance(part, ast.Constant) else r"(\w*)" for part in node.values
                    ]
                    patterns.add("".join(parts))
    return plain, patterns


PLAIN, PATTERNS = texts()


def is_written(name: str) -> bool:
    """Returns True when the writers have this name, or a formatted string that gives it.

    What fills the gaps of a formatted string is a string of the writers too, or a number. The names of a worker pool
    are put together from the pool and the pool's own names.
    """
    pool, _, quantity = name.partition("_pool/")
    if quantity:
        return {f"{pool}_pool", quantity} <= PLAIN
    example = name.replace(NUMBER, "1")
    matches = (re.fullmatch(pattern, example) for pattern in PATTERNS if re.match(r"[a-z_]+/", pattern))
    return example in PLAIN or any({*match.groups()} - {"1"} <= PLAIN for match in matches if match)


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_is_a_name_that_the_code_writes(name: str) -> None:
    assert name == "step" or is_written(name)


@pytest.mark.parametrize("name", ["rollout/reword", "replay_pool/nothing", "share/towr_dml", "step/slept"])
def test_a_name_that_nobody_writes_is_found_out(name: str) -> None:
    assert not is_written(name)


def test_every_name_in_the_code_has_an_entry() -> None:
    names = {text for text in PLAIN if re.fullmatch(r"[a-z_]+/[a-z_0-9]+", text) and text.partition("/")[0] in STAGES}
    assert len(names) > 30
    assert {name for name in names if find_metric(name) is None} == set()


def test_a_name_belongs_to_one_entry() -> None:
    assert len(NAMES) == len(set(NAMES))
    examples = [name.replace(NUMBER, "1") for name in NAMES]
    assert {name for name in examples if sum(metric.covers(name) for metric in all_metrics()) != 1} == set()


@pytest.mark.parametrize("metric", tuple(all_metrics()), ids=lambda metric: metric.name)
def test_every_entry_has_its_sentences_and_a_unit(metric: Metric) -> None:
    for text in (metric.measures, metric.healthy, metric.otherwise):
        assert text.endswith(".")
    assert metric.unit and not metric.unit.endswith(".")


def test_configuration_keys_and_metrics_in_the_texts_exist() -> None:
    from saga_dist.config.reference import config_keys, config_sections

    keys = {key.key for key in config_keys()}
    sections = {section.name for section in config_sections()}
    texts = [text for metric in all_metrics() for text in (metric.measures, metric.healthy, metric.otherwise)]
    texts += [metric.only for metric in all_metrics()] + [group.about for group in metric_groups()]
    named = {word for text in texts for word in re.findall(r"\b([a-z]+\.[a-z_]+)\b", text)}
    named = {word for word in named if word.partition(".")[0] in sections}
    assert len(named) > 30 and named <= keys
    metrics = {word for text in texts for word in re.findall(r"\b[a-z]+/[a-z_0-9]+\b", text)}
    assert len(metrics) > 15 and {name for name in metrics if not metrics_called(name)} == set()


def test_names_of_a_family() -> None:
    family = find_metric("rollout/verdict_form_none_share")
    assert family is not None
    assert family.names == tuple(f"rollout/verdict_form_{form}_share" for form in ("strict", "repaired", "none"))
    assert not family.covers("rollout/verdict_form_other_share")
    quantiles = find_metric("importance/weight_p50")
    assert quantiles is not None and quantiles.names == ("importance/weight_p{N}",)
    assert quantiles.covers("importance/weight_p100") and not quantiles.covers("importance/weight_pmax")


def test_a_name_a_family_or_a_part_is_found() -> None:
    assert [metric.name for metric in metrics_called("loss/kl")] == ["loss/kl"]
    assert [metric.name for metric in metrics_called("staleness/groups_at_3")] == ["staleness/groups_at_{N}"]
    assert [metric.name for metric in metrics_called("share/")] == [
        "share/tower_{dml,grpo,verdict}",
        "share/pooler_{dml,kl}",
    ]
    with pytest.raises(ConfigError, match=r"no metric is called 'rollout/rewards'.*did you mean rollout/reward_mean"):
        metrics_called("rollout/rewards")


def test_every_name_has_a_title_of_its_own() -> None:
    titles = [metric.title_of(name.replace(NUMBER, "7")) for metric in all_metrics() for name in metric.names]
    assert len(set(titles)) == len(titles)
    assert not [part for title in titles for part in title if set("{}_") & set(part.replace("L_", ""))]


def test_metrics_of_one_heading_have_one_unit() -> None:
    """They are drawn in one chart."""
    units: dict[str, set[str]] = {}
    for metric in all_metrics():
        for title in metric.titles:
            units.setdefault(title.partition(": ")[0], set()).add(metric.axis_unit)
    assert {heading: found for heading, found in units.items() if len(found) > 1} == {}


def test_a_title_follows_the_name_within_its_family() -> None:
    for name, title in (
        ("rollout/verdict_accuracy_different", ("Verdict accuracy", "different classes")),
        ("importance/weight_p95", ("Importance weight", "percentile 95")),
        ("replay_pool/leases", ("Leases", "replay workers")),
        ("rollout/reward_mean", ("Mean reward", "")),
    ):
        metric = find_metric(name)
        assert metric is not None and metric.title_of(name) == title
