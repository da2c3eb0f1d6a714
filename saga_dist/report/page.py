"""Renders the report of a run as one HTML file without network access.

The content security policy allows the embedded style sheet and script, by their hashes, and pictures in data URIs. The
browser refuses everything else, such as a script injected by a completion.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from saga_dist import __version__
from saga_dist.report.attribute_section import AttributeStats
from saga_dist.report.confusions import Confusion
from saga_dist.report.embedding_map import EmbeddingMap
from saga_dist.report.evidence import EvidenceView
from saga_dist.report.gallery import Gallery
from saga_dist.report.page_facts import differing_keys, facts
from saga_dist.report.results_section import baselines, result_rows, verdict_rows
from saga_dist.report.run_charts import RunRows, run_charts
from saga_dist.report.sources import RunFiles
from saga_dist.report.teacher import AttentionFigure
from saga_dist.report.text import json_block, shown, shown_name
from saga_dist.retrieval.results import unfindable_remarks

SECTIONS = {
    "results": "Results",
    "curves": "Curves",
    "retrieval": "Retrieval",
    "evidence": "Evidence",
    "attention": "Attention",
    "attributes": "Attributes",
    "rollouts": "Rollouts",
}
"""Parts of the page that may be missing, with their titles, in order."""
SCRIPTS = ("dom.js", "page.js", "charts.js", "map.js", "agreement.js", "viewer.js")
"""Script files, which share one function scope."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Retrieval among the test images."""

    gallery: Gallery
    """Queries with their nearest images."""
    confusions: list[Confusion]
    """Confused classes, most frequent first."""
    map: EmbeddingMap | None
    """Map of the embeddings; None when all are equal."""


@dataclass(frozen=True, slots=True)
class Content:
    """Content of the page. A note explains each part that is None or empty."""

    run: RunFiles
    """Files of the run."""
    labels: Sequence[str]
    """Label of the run and of each of ``others``."""
    others: Sequence[RunFiles] = ()
    """Runs whose curves and results are shown beside those of the run."""
    retrieval: Retrieval | None = None
    """Retrieval examples, confused classes and map."""
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
    """Part, a key of ``SECTIONS``, to the reason why it is missing or incomplete."""


def render(content: Content, *, only_rollouts: bool = False) -> str:
    """Returns the page as an HTML document.

    Args:
        content: content of the page.
        only_rollouts: True to render the rollout viewer only.
    """
    style = asset("style.css") + asset("viewer.css")
    script = '"use strict";\n(() => {\n' + "".join(map(asset, SCRIPTS)) + "})();\n"
    parts = {"rollouts": _rollouts(content)} if only_rollouts else _parts(content)
    present = [part for part, values in parts.items() if values]
    notes = {part: shown(note) for part, note in content.notes.items()}
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=shown_name(content.run.path.resolve().name),
            only_rollouts=only_rollouts,
            policy=(
                f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
                "base-uri 'none'; form-action 'none'"
            ),
            style=Markup(style),
            script=Markup(script),
            runs=list(map(shown_name, content.labels)),
            facts=facts(content.run),
            sections=[(part, SECTIONS[part]) for part in present],
            missing=[(SECTIONS[part], notes[part]) for part in parts if part not in present and notes.get(part)],
            notes=notes,
            config=shown(content.run.config.model_dump_json(indent=2)),
            differing=differing_keys([one.config for one in (content.run, *content.others)]),
            versions=sorted({**content.run.versions, "saga_dist (this page)": __version__}.items()),
            **{part: parts.get(part) for part in SECTIONS},
        )
    )


@cache
def asset(name: str) -> str:
    """Returns a text file of ``templates/``."""
    return (files("saga_dist.report") / "templates" / name).read_text("utf-8")


def _parts(content: Content) -> dict[str, Any]:
    """Returns the values of each section for the template; a false value leaves the section out."""
    return {
        "results": _results(content),
        "curves": _curves(content),
        "retrieval": content.retrieval,
        "evidence": content.evidence,
        "attention": content.attention,
        "attributes": content.attributes,
        "rollouts": _rollouts(content),
    }


def _results(content: Content) -> dict[str, Any] | None:
    runs = (content.run, *content.others)
    rows = result_rows(runs, content.labels)
    if not rows:
        return None
    methods = [method for run in runs if run.results is not None for method in run.results.methods]
    return {
        "rows": rows,
        "verdicts": verdict_rows(runs, content.labels),
        "remarks": list(map(shown, unfindable_remarks(methods))),
        "unchanged": None if content.run.results is None else content.run.results.backbone_unchanged,
    }


def _curves(content: Content) -> dict[str, Any] | None:
    runs = [RunRows(label, run.rows) for label, run in zip(content.labels, (content.run, *content.others), strict=True)]
    main, groups = run_charts(runs, baselines(content.run))
    charts = [*main, *(chart for group in groups for chart in group.charts)]
    if not charts:
        return None
    return {"main": main, "groups": groups, "averaged": any(chart.averaged for chart in charts)}


def _rollouts(content: Content) -> dict[str, Any] | None:
    """Returns the data of the viewer as JSON, and the numbers of groups shown and left out."""
    if content.viewer is None or not content.viewer["groups"]:
        return None
    num_shown = len(content.viewer["groups"])
    return {
        "data": Markup(json_block(content.viewer)),
        "num_shown": num_shown,
        "left_out": content.num_groups - num_shown,
    }


def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.0f} %"
    environment.filters["link"] = lambda value: "–" if value is None else f"{value:+.2f}"
    environment.filters["json_block"] = lambda value: Markup(json_block(value))
    return environment


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
