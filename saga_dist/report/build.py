"""Builds the report page of a run directory; a note explains each part that is missing.

The parts that need a model or images are optional, so a run that is still training, or whose data set is on another
machine, has a report too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from saga_dist.data.image_sets import Splits
from saga_dist.data.prompts import PromptSpec
from saga_dist.errors import UserError
from saga_dist.models.encoder import Encoder, load
from saga_dist.models.placement import checked_device
from saga_dist.objectives.spans import Decoder
from saga_dist.report.attention import pooler_maps
from saga_dist.report.attribute_stats import DescribedPair, attribute_table, attribute_values, disagreement_by_step
from saga_dist.report.curves import NUM_COLOURS, Series, line_chart
from saga_dist.report.evidence import NOT_MEASURED, read_evidence
from saga_dist.report.gallery import Gallery, build_gallery
from saga_dist.report.page import AttributeStats, Content, render
from saga_dist.report.sources import Recorded, RecordedGroup, RunFiles, open_run, read_groups
from saga_dist.report.teacher import AttentionFigure, TeacherAttention, choose_described, pair_overlays
from saga_dist.report.text import shown_name
from saga_dist.report.viewer import Overlay, TrainingImages, select_groups, viewer_data
from saga_dist.runtime.build import build_family, build_prompt, build_splits, set_threads
from saga_dist.utils.stages import stage


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of the content of a page."""

    groups: int = 200
    """Largest number of recorded groups in the viewer."""
    rows: int = 8
    """Number of queries shown in the gallery."""
    images: int = 4000
    """Largest number of images of a split that are embedded for the gallery."""
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


@dataclass
class _RunParts:
    """The parts of a run that may be missing. Each is loaded at most once, when first used."""

    run: RunFiles
    device: str
    """Device of the encoder."""
    notes: dict[str, str] = field(default_factory=dict)
    """Part (``images``, ``model``, ``tokenizer``, ``attention``) to the reason why it is missing."""

    @cached_property
    def splits(self) -> Splits | None:
        """The images; None, with a note, when they cannot be read."""
        try:
            return build_splits(self.run.config.data, seed=self.run.config.run.seed)
        except UserError as error:
            self.notes["images"] = f"The images cannot be read: {error}."
            return None

    @property
    def pictures(self) -> TrainingImages | None:
        """The images of recorded pairs, with their training augmentation; None when the images cannot be read."""
        return None if self.splits is None else TrainingImages(self.run.config, self.splits.train)

    @cached_property
    def encoder(self) -> Encoder | None:
        """The run's encoder; None, with a note, when it is missing or damaged."""
        if not self.run.has_model:
            self.notes["model"] = "The run has not written its encoder (model/) yet."
            return None
        device = checked_device(self.device)  # outside of the try: a wrong option ends the command
        try:
            return load(self.run.path, device=device, family=self.run.config.model.own_family)
        except UserError as error:
            self.notes["model"] = f"The encoder cannot be loaded: {error}."
            return None

    @cached_property
    def tokenizer(self) -> Decoder | None:
        """The MLLM's tokenizer, to split completions into tokens; None, with a note, when it cannot be loaded."""
        try:
            return build_family(self.run.config).load_tokenizer()
        except UserError as error:
            self.notes["tokenizer"] = f"Completions are not split into tokens: {error}."
            return None

    def notes_on(self, *parts: str) -> str:
        """Returns the notes on these parts, one sentence after the other; empty when none is missing."""
        return " ".join(self.notes[part] for part in parts if part in self.notes)


def report_page(path: Path, settings: Settings) -> Page:
    """Returns the whole report of a run.

    Args:
        path: run directory.
        settings: limits of the content.

    Raises:
        UserError: there is no run, a file of it is damaged, or the device cannot be used.
    """
    run = open_run(path)
    set_threads(run.config)
    parts = _RunParts(run, settings.device)
    stage("reading the recordings of %s", path)
    recorded = read_groups(run)
    chosen = select_groups(recorded.groups, settings.groups)
    figures, overlays = _teacher_attention(parts, chosen, settings.attention)
    gallery = _gallery(parts, settings)
    content = Content(
        run=run,
        gallery=gallery,
        attention=figures,
        attributes=_attribute_stats(run, recorded),
        evidence=read_evidence(run.path),
        viewer=_viewer(parts, chosen, overlays),
        num_groups=len(recorded.groups),
        notes={
            "gallery": parts.notes_on("model", "images"),
            "attention": parts.notes_on("model", "images", "attention")
            or "The MLLM’s attention is computed on demand: saga-dist report RUN --attention N.",
            "attributes": _NO_RECORDING if not recorded.groups else "The prompt asks for no attributes.",
            "evidence": NOT_MEASURED,
            "viewer": _viewer_note(parts, recorded),
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
    parts = _RunParts(run, settings.device)
    stage("reading the recordings of %s", path)
    recorded = read_groups(run, step=step)
    chosen = select_groups(recorded.groups, settings.groups) if step is None else recorded.groups
    viewer = _viewer(parts, chosen, {})
    note = _viewer_note(parts, recorded)
    content = Content(run=run, viewer=viewer, num_groups=len(recorded.groups), notes={"viewer": note})
    return Page(render(content, only_rollouts=True), _lines(recorded, chosen, parts))


_NO_RECORDING = "No recorded rollouts: the run trained without them, or with rollout.record = false."


def describe(recorded: RecordedGroup, spec: PromptSpec) -> list[DescribedPair]:
    """Returns the attribute values and the verdict of each completion of a group.

    Args:
        recorded: the group.
        spec: the prompt; its JSON keys name the two descriptions.
    """
    group = recorded.group
    # Completions of a group are often equal, and parsing them takes most of the time.
    read = partial(attribute_values, verdict_key=spec.verdict_key, keys=spec.keys)
    values = {text: (read(text, spec.key_a), read(text, spec.key_b)) for text in set(group.completions.texts)}
    return [
        DescribedPair(*values[text], verdict, right=verdict == group.pair.same)
        for text, verdict in zip(group.completions.texts, group.verdicts, strict=True)
    ]


def _gallery(parts: _RunParts, settings: Settings) -> Gallery | None:
    encoder, splits = parts.encoder, parts.splits
    if encoder is None or splits is None:
        return None
    num_images = min(len(splits.test), settings.images)
    stage("embedding %d images for the gallery", num_images)
    return build_gallery(encoder, splits.test, splits.gallery, num_rows=settings.rows, max_images=settings.images)


def _teacher_attention(
    parts: _RunParts, groups: list[RecordedGroup], limit: int
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
    parts: _RunParts, groups: list[RecordedGroup], overlays: Mapping[str, list[Overlay]]
) -> dict[str, object] | None:
    if not groups:
        return None
    encoder = parts.encoder
    stage("drawing %d groups", len(groups))

    def maps(images: list[np.ndarray]) -> list[np.ndarray]:
        return [] if encoder is None else pooler_maps(encoder, images)

    return viewer_data(groups, tokenizer=parts.tokenizer, pictures=parts.pictures, maps=maps, overlays=overlays)


def _viewer_note(parts: _RunParts, recorded: Recorded) -> str:
    if not recorded.groups:
        return _NO_RECORDING
    return " ".join(sentence for sentence in (_unread(recorded), parts.notes_on("images", "tokenizer")) if sentence)


def _attribute_stats(run: RunFiles, recorded: Recorded) -> AttributeStats | None:
    spec = build_prompt(run.config)
    if not recorded.groups or not spec.describes_images:
        return None
    described = [describe(one, spec) for one in recorded.groups]
    steps = [one.step for one in recorded.groups]
    same = [one.group.pair.same for one in recorded.groups]
    rows = attribute_table(described, steps, same, spec.vocabulary.attribute_keys)
    drawn = sorted(rows, key=lambda row: -(row.disagreement or 0.0))[:NUM_COLOURS]
    lines = [
        Series(
            row.attribute,
            [(float(step), value) for step, value in disagreement_by_step(described, steps, row.attribute)],
        )
        for row in rows
        if row in drawn
    ]
    which = f"the {len(lines)} largest of {len(rows)}" if len(lines) < len(rows) else "within groups"
    return AttributeStats(
        rows=[replace(row, attribute=shown_name(row.attribute)) for row in rows],
        chart=line_chart(f"Disagreement, {which}", lines, percent=True),
        num_groups=len(recorded.groups),
        num_contributing=sum(one.group.contributes for one in recorded.groups),
        num_read=recorded.num_read,
        num_recordings=recorded.num_recordings,
    )


def _lines(recorded: Recorded, chosen: list[RecordedGroup], parts: _RunParts) -> list[str]:
    lines = [f"rollouts: {len(chosen):,} of {len(recorded.groups):,} groups of {recorded.num_read:,} recorded steps"]
    unread = _unread(recorded)
    return [*lines, *([f"rollouts: {unread}"] if unread else []), *parts.notes.values()]


def _unread(recorded: Recorded) -> str:
    """Returns a sentence on the recordings that were not read; empty when all were."""
    left = recorded.num_recordings - recorded.num_read
    return f"{left:,} of {recorded.num_recordings:,} recorded steps, evenly spread, were not read." if left else ""
