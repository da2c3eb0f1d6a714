"""Builds the report page of a run directory; a note explains each part that is missing.

The parts that need a model or images are optional, so a run that is still training, or whose data set is on another
machine, has a report too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saga_dist.errors import ConfigError
from saga_dist.report.agreement import agreement_rows
from saga_dist.report.attention import pooler_maps
from saga_dist.report.attribute_section import attribute_stats, describe
from saga_dist.report.attribute_stats import DescribedPair
from saga_dist.report.confusions import build_confusions
from saga_dist.report.embedding_map import build_map
from saga_dist.report.evidence import NOT_MEASURED, read_evidence
from saga_dist.report.gallery import build_gallery
from saga_dist.report.page import Content, Retrieval, render
from saga_dist.report.parts import RunParts
from saga_dist.report.ranking import rank_images
from saga_dist.report.shown_images import ImageRenderer
from saga_dist.report.sources import Recorded, RecordedGroup, open_run, read_groups, run_labels
from saga_dist.report.teacher import AttentionFigure, TeacherAttention, choose_described, pair_overlays
from saga_dist.report.viewer import Overlay, select_groups, viewer_data
from saga_dist.runtime.build import build_prompt, set_threads
from saga_dist.utils.stages import stage

MOST_RUNS = 12
"""Largest number of runs on one page; there are six colours of lines, each full and dashed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of the content of a page."""

    groups: int = 200
    """Largest number of recorded groups in the viewer."""
    rows: int = 8
    """Number of queries shown in the gallery."""
    images: int = 4000
    """Largest number of images of a split that are embedded for gallery, confusions and map."""
    map_images: int = 300
    """Largest number of images on the embedding map; each adds about 4 KB to the page."""
    attention: int = 0
    """Number of groups whose MLLM attention is computed; with 0 the language model is not loaded."""
    device: str = "cpu"
    """Device of the run's encoder."""


@dataclass(frozen=True, slots=True)
class Page:
    """A rendered page."""

    html: str
    """The complete HTML document."""
    lines: list[str]
    """Lines to print about the page: number of groups shown, and the notes on missing parts."""


def report_page(path: Path, settings: Settings, compared: Sequence[Path] = ()) -> Page:
    """Returns the whole report of a run, with the curves and results of other runs beside its own.

    Args:
        path: run directory.
        settings: limits of the content.
        compared: directories of the other runs.

    Raises:
        UserError: there is no run, a file of one is damaged, a run is given twice, there are too many, or the device
            cannot be used.
    """
    paths = _checked([path, *compared])
    run, *others = map(open_run, paths)
    set_threads(run.config)
    parts = RunParts(run, settings.device)
    stage("reading the recordings of %s", path)
    recorded = read_groups(run)
    chosen = select_groups(recorded.groups, settings.groups)
    figures, overlays = _teacher_attention(parts, chosen, settings.attention)
    spec = build_prompt(run.config)
    descriptions = describe(recorded.groups, spec)
    content = Content(
        run=run,
        others=others,
        labels=run_labels(paths),
        retrieval=_retrieval(parts, settings),
        attention=figures,
        attributes=attribute_stats(recorded, descriptions, spec.vocabulary.attribute_keys),
        evidence=read_evidence(run.path),
        viewer=_viewer(parts, chosen, descriptions, overlays),
        num_groups=len(recorded.groups),
        notes={
            "results": "No results.json yet: the run has not finished.",
            "curves": "No metrics yet.",
            "retrieval": parts.notes_on("model", "images"),
            "attention": parts.notes_on("model", "images", "attention")
            or "The MLLM’s attention is computed on demand: saga-dist report RUN --attention N.",
            "attributes": _NO_RECORDING if not recorded.groups else "The prompt asks for no attributes.",
            "evidence": NOT_MEASURED,
            "rollouts": _viewer_note(parts, recorded),
        },
    )
    return Page(render(content), _lines(recorded, chosen, parts))


def rollouts_page(path: Path, settings: Settings, *, step: int | None) -> Page:
    """Returns a page with the rollout viewer only.

    Args:
        path: run directory.
        settings: limits of the content.
        step: show all groups of this step; None for a selection over all steps.

    Raises:
        UserError: there is no run or no such step, a file is damaged, or the device cannot be used.
    """
    run = open_run(path)
    set_threads(run.config)
    parts = RunParts(run, settings.device)
    stage("reading the recordings of %s", path)
    recorded = read_groups(run, step=step)
    chosen = select_groups(recorded.groups, settings.groups) if step is None else recorded.groups
    viewer = _viewer(parts, chosen, describe(chosen, build_prompt(run.config)), {})
    content = Content(
        run=run,
        labels=run_labels([path]),
        viewer=viewer,
        num_groups=len(recorded.groups),
        notes={"rollouts": _viewer_note(parts, recorded)},
    )
    return Page(render(content, only_rollouts=True), _lines(recorded, chosen, parts))


_NO_RECORDING = "No recorded rollouts: the run trained without them, or with rollout.record = false."


def _checked(paths: Sequence[Path]) -> list[Path]:
    """Returns the run directories.

    Raises:
        ConfigError: one is given twice, or there are too many.
    """
    resolved = [path.resolve() for path in paths]
    twice = next((path for index, path in enumerate(paths) if resolved[index] in resolved[:index]), None)
    if twice is not None:
        raise ConfigError(f"{twice} is given twice", where="RUN", expected="different runs", fix="name each run once")
    if len(paths) > MOST_RUNS:
        raise ConfigError(
            f"{len(paths)} runs", where="RUN", expected=f"at most {MOST_RUNS} on one page", fix="leave some out"
        )
    return list(paths)


def _retrieval(parts: RunParts, settings: Settings) -> Retrieval | None:
    encoder, splits = parts.encoder, parts.splits
    if encoder is None or splits is None:
        return None
    num_images = min(len(splits.test), settings.images)
    stage("embedding %d test images", num_images)
    ranking = rank_images(encoder, splits.test, splits.gallery, max_images=settings.images)
    renderer = ImageRenderer(encoder)
    return Retrieval(
        gallery=build_gallery(ranking, renderer, num_rows=settings.rows),
        confusions=build_confusions(ranking, renderer),
        map=build_map(ranking, limit=settings.map_images),
    )


def _teacher_attention(
    parts: RunParts, groups: list[RecordedGroup], limit: int
) -> tuple[list[AttentionFigure], dict[str, list[Overlay]]]:
    """Returns attention figures of at most ``limit`` groups, and overlays for the viewer by pair id."""
    if not limit or not groups:
        return [], {}
    encoder, pictures = parts.encoder, parts.pictures
    if encoder is None or pictures is None:
        return [], {}
    chosen = choose_described(groups, limit)
    if not chosen:
        parts.notes["attention"] = "No recorded group has a correct completion that describes both images."
        return [], {}
    stage("reading the MLLM's attention for %d groups", len(chosen))
    teacher = TeacherAttention(parts.run.config, encoder, pictures)
    figures: list[AttentionFigure] = []
    overlays: dict[str, list[Overlay]] = {}
    for recorded in chosen:
        pair = teacher.figures(recorded)
        figures += pair
        overlays[recorded.group.pair.pair_id] = pair_overlays(pair)
    return figures, overlays


def _viewer(
    parts: RunParts,
    groups: list[RecordedGroup],
    descriptions: Mapping[str, Sequence[DescribedPair]],
    overlays: Mapping[str, list[Overlay]],
) -> dict[str, object] | None:
    if not groups:
        return None
    encoder, keys = parts.encoder, build_prompt(parts.run.config).vocabulary.attribute_keys
    stage("drawing %d groups", len(groups))

    def maps(images: list[np.ndarray]) -> list[np.ndarray]:
        return [] if encoder is None else pooler_maps(encoder, images)

    return viewer_data(
        groups,
        prompt=parts.prompt,
        tokenizer=parts.tokenizer,
        pictures=parts.pictures,
        maps=maps,
        overlays=overlays,
        attributes={pair_id: agreement_rows(described, keys) for pair_id, described in descriptions.items()},
    )


def _viewer_note(parts: RunParts, recorded: Recorded) -> str:
    if not recorded.groups:
        return _NO_RECORDING
    return " ".join(sentence for sentence in (_unread(recorded), parts.notes_on("images", "tokenizer")) if sentence)


def _lines(recorded: Recorded, chosen: list[RecordedGroup], parts: RunParts) -> list[str]:
    lines = [f"rollouts: {len(chosen):,} of {len(recorded.groups):,} groups of {recorded.num_read:,} recorded steps"]
    unread = _unread(recorded)
    return [*lines, *([f"rollouts: {unread}"] if unread else []), *parts.notes.values()]


def _unread(recorded: Recorded) -> str:
    """Returns a sentence on the recordings that were not read; empty when all were."""
    left = recorded.num_recordings - recorded.num_read
    return f"{left:,} of {recorded.num_recordings:,} recorded steps, evenly spread, were not read." if left else ""
