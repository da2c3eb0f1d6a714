"""Renders the report of a run as one HTML file without network access.

The content security policy allows the embedded style sheet and script, by their hashes, and pictures in data URIs. The
browser refuses everything else, such as a script injected by a completion.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from saga_dist import __version__
from saga_dist.config import ObjectiveSection
from saga_dist.report.attribute_stats import AttributeRow
from saga_dist.report.curves import Chart, run_charts
from saga_dist.report.evidence import EvidenceView
from saga_dist.report.gallery import Gallery
from saga_dist.report.sources import RunFiles
from saga_dist.report.teacher import AttentionFigure
from saga_dist.report.text import json_block, shown, shown_name
from saga_dist.retrieval.results import MethodResult, Results, unfindable_remarks
from saga_dist.training.training_facts import training_facts


@dataclass(frozen=True, slots=True)
class ResultRow:
    """Results of one method on one split."""

    method: str
    split: str
    recalls: tuple[float, float, float, float]
    """Recall@1, 2, 4 and 8, in percent."""
    low: float
    """Lower end of the 95 % confidence interval of Recall@1, in percent."""
    high: float
    """Upper end of the 95 % confidence interval of Recall@1, in percent."""
    nmi: float
    """Normalised mutual information, in [0, 1]."""
    num_queries: int
    num_classes: int
    steps: str
    """Selected step and number of steps, as text; a dash for a method without training."""


@dataclass(frozen=True, slots=True)
class AttributeStats:
    """Data of the attribute section."""

    rows: list[AttributeRow]
    """One row per attribute."""
    chart: Chart
    """Disagreement over the optimizer steps."""
    num_groups: int
    """Groups that were read."""
    num_contributing: int
    """Groups that carry a gradient, among those that were read."""
    num_read: int
    """Recorded steps that were read."""
    num_recordings: int
    """Recorded steps of the run."""


@dataclass(frozen=True, slots=True)
class Content:
    """Content of the page. A note explains each part that is None or empty."""

    run: RunFiles
    """Files of the run."""
    gallery: Gallery | None = None
    """Retrieval examples and confused classes."""
    attention: list[AttentionFigure] = field(default_factory=list)
    """Attention maps of recorded pairs."""
    attributes: AttributeStats | None = None
    """Statistics of the described attributes."""
    evidence: EvidenceView | None = None
    """Results of the diagnostics."""
    viewer: dict[str, Any] | None = None
    """Data of the rollout viewer, from ``viewer_data``."""
    num_groups: int = 0
    """Recorded groups that were read, of which the viewer shows some."""
    notes: dict[str, str] = field(default_factory=dict)
    """Part (``gallery``, ``attention``, ``attributes``, ``evidence``, ``viewer``) to the reason why it is missing or
    incomplete."""


def render(content: Content, *, only_rollouts: bool = False) -> str:
    """Returns the page as an HTML document.

    Args:
        content: content of the page.
        only_rollouts: True to render the rollout viewer only.
    """
    style, script = asset("style.css"), asset("viewer.js")
    run, viewer = content.run, content.viewer
    charts, others = ([], []) if only_rollouts else run_charts(run.rows)
    shown_groups = len(viewer["groups"]) if viewer is not None else 0
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=shown_name(run.path.resolve().name),
            only_rollouts=only_rollouts,
            policy=(
                f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
                "base-uri 'none'; form-action 'none'"
            ),
            style=Markup(style),
            script=Markup(script),
            data=Markup(json_block(viewer)) if viewer is not None and shown_groups else None,
            num_shown=shown_groups,
            left_out=content.num_groups - shown_groups,
            facts=_facts(run),
            charts=charts,
            others=others,
            averaged=any(chart.averaged for chart in (*charts, *others)),
            results=[] if run.results is None else result_rows(run.results),
            verdicts=[] if run.results is None else _verdict_rows(run.results),
            unfindable=[] if run.results is None else list(map(shown, unfindable_remarks(run.results.methods))),
            unchanged=None if run.results is None else run.results.backbone_unchanged,
            gallery=content.gallery,
            attention=content.attention,
            attributes=content.attributes,
            evidence=content.evidence,
            notes={part: shown(note) for part, note in content.notes.items()},
            config=shown(run.config.model_dump_json(indent=2)),
            versions=sorted({**run.versions, "saga_dist (this page)": __version__}.items()),
        )
    )


def result_rows(results: Results) -> list[ResultRow]:
    """Returns one row per split and method, the split ``test`` first."""
    splits = sorted({split for method in results.methods for split in method.splits}, key=lambda name: name != "test")
    return [_result_row(method, split) for split in splits for method in results.methods if split in method.splits]


@cache
def asset(name: str) -> str:
    """Returns a text file of ``templates/``."""
    return (files("saga_dist.report") / "templates" / name).read_text("utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.0f} %"
    environment.filters["link"] = lambda value: "–" if value is None else f"{value:+.2f}"
    return environment


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _result_row(method: MethodResult, split: str) -> ResultRow:
    found = method.splits[split]
    recalls = (found.recall_at_1, found.recall_at_2, found.recall_at_4, found.recall_at_8)
    low, high = found.confidence_interval
    return ResultRow(
        shown_name(method.name),
        shown_name(split),
        (100 * recalls[0], 100 * recalls[1], 100 * recalls[2], 100 * recalls[3]),
        100 * low,
        100 * high,
        found.nmi,
        found.num_queries,
        found.num_classes,
        f"{method.selected_step} of {method.optimizer_steps}" if method.optimizer_steps else "–",
    )


def _verdict_rows(results: Results) -> list[tuple[str, list[tuple[str, float, float, float]]]]:
    return [
        (
            shown_name(method.name),
            [
                (shown_name(split), one.same_accuracy, one.different_accuracy, one.json_valid_share)
                for split, one in method.verdicts.items()
            ],
        )
        for method in results.methods
        if method.verdicts
    ]


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """Returns (name, value) of the facts in the head of the page."""
    config = run.config
    done = int(max((row["step"] for row in run.rows), default=0))
    facts = [
        ("steps", f"{done} of {config.run.steps}"),
        ("data", shown_name(config.data.layout)),
        ("started from", shown_name(config.model.path)),
        ("metric loss", shown_name(config.objective.metric_loss)),
        ("losses", _losses(config.objective)),
    ]
    training = training_facts(config, run.path)
    images, size = training.images_seen, config.data.image_size
    if training.remark:
        facts.append(("remark", training.remark))
    facts.append(("images in all steps", f"{'not known' if images is None else f'{images:,}'}, {size} px"))
    walls = [row["step/wall_s"] for row in run.rows if "step/wall_s" in row]
    if walls:
        facts.append(("a step", f"{sum(walls) / len(walls):.2f} s"))
    best = _headline(run.results)
    return [*best, *facts]


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
