"""Applies every diagnostic to a run directory; a note explains each diagnostic that the run does not allow.

The weights are those of the selected checkpoint, or of the newest one when none is selected. Unseen images come from
the test split; no choice is based on them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from saga_dist.checkpoint.manifest import CheckpointInfo, verify
from saga_dist.checkpoint.store import CheckpointStore
from saga_dist.config import RunConfig, load_run_config
from saga_dist.data.image_sets import Splits
from saga_dist.data.prompts import PromptSpec
from saga_dist.data.sampling import training_sampler
from saga_dist.diagnostics.attention_localization import attention_share_figures
from saga_dist.diagnostics.attribute_readout import AttributeReadout, build_template
from saga_dist.diagnostics.compare import probe_figures, recall_figures
from saga_dist.diagnostics.encoded_images import EncodedImages, encode_images
from saga_dist.diagnostics.loss_gradients import measure_loss_gradients
from saga_dist.diagnostics.oracle import Oracle
from saga_dist.diagnostics.probes import MIN_CLASSES
from saga_dist.diagnostics.recorded_steps import recorded_steps
from saga_dist.diagnostics.schema import (
    PRETRAINED,
    TRAINED,
    AttentionEntropy,
    AttentionShares,
    Evidence,
    Gradients,
    Probes,
    StepCosines,
    StepFigure,
)
from saga_dist.diagnostics.step_cosines import STEPS, step_cosines
from saga_dist.diagnostics.verdicts import early_and_late
from saga_dist.errors import CheckpointError, DataError
from saga_dist.metrics.log import MetricsLog
from saga_dist.runtime.build import (
    build_family,
    build_learner,
    build_prompt,
    build_splits,
    prompt_text,
    torch_dtype,
)
from saga_dist.runtime.devices import resolve_device
from saga_dist.standin.language import COLOR_WORDS, PARTS
from saga_dist.standin.masks import scene_masks
from saga_dist.utils.stages import stage

ATTENTION_IMAGES_PER_CLASS = 4
"""Images of each test class on which attention is measured."""


@dataclass
class _LoadedRun:
    """A run directory, its data and the test images that are measured."""

    run_dir: Path
    config: RunConfig
    checkpoint: CheckpointInfo
    splits: Splits
    image_ids: list[int]
    """[I] indices into the test split: the first image of each class, then the second of each, and so on."""
    notes: list[str] = field(default_factory=list)
    """One line for each diagnostic that was not possible, with the reason."""

    @property
    def labels_I(self) -> np.ndarray:  # noqa: N802  (shape suffix)
        """[I] integer classes of the images."""
        return self.splits.test.labels_I[self.image_ids]

    @property
    def has_built_in_birds(self) -> bool:
        """True when the images are the built-in birds, whose attributes and masks are known."""
        return self.config.data.layout == "birds"


def measure(run_dir: Path, *, num_images: int) -> Evidence:
    """Returns the results of all diagnostics for a run.

    Args:
        run_dir: a directory with ``config.json`` and a checkpoint.
        num_images: largest number of test images to use, equally many of each class; at least two of each are used.

    Raises:
        ConfigError: the directory holds no run.
        CheckpointError: the run has no valid checkpoint.
        DataError: the images of the run are missing, or are not those that were recorded.
    """
    started = time.monotonic()
    run = _load_run(run_dir, num_images)
    stage("encoding %d images", len(run.image_ids))
    observed, step = _encode_images(run)
    stage("measuring the gradient of each loss")
    gradients, entropy, between = _loss_gradients(run, step)
    seed = run.config.run.seed
    return Evidence(
        step=step,
        num_images=len(run.image_ids),
        num_classes=len(np.unique(run.labels_I)),
        recalls=recall_figures(observed, run.labels_I, seed=seed, resamples=run.config.evaluation.bootstrap_resamples),
        probes=_probes(run, observed),
        steps=_steps(run),
        gradients=gradients,
        step_cosines=between,
        spread=entropy,
        looks=_attention_shares(run, observed),
        notes=tuple(run.notes),
        seconds=time.monotonic() - started,
    )


def _load_run(run_dir: Path, num_images: int) -> _LoadedRun:
    config = _without_unused_birds(load_run_config(run_dir))
    checkpoint = _selected(run_dir)
    splits = build_splits(config.data, seed=config.run.seed)
    return _LoadedRun(run_dir, config, checkpoint, splits, _first_of_each(splits.test.labels_I, num_images))


def _without_unused_birds(config: RunConfig) -> RunConfig:
    """Returns the configuration without probe images and with two validation images per class: neither is used here."""
    if config.data.layout != "birds":
        return config
    birds = config.data.birds.model_copy(update={"probe_images": 0, "val_images_per_class": 2})
    return config.model_copy(update={"data": config.data.model_copy(update={"birds": birds})})


def _selected(run_dir: Path) -> CheckpointInfo:
    store = CheckpointStore(run_dir / "checkpoints", keep=1)
    steps = store.steps()
    if not steps:
        raise CheckpointError(
            "no checkpoint", where=str(run_dir / "checkpoints"), expected="step_*", fix="train the run first"
        )
    return verify(store.best() or store.path(steps[-1]))


def _first_of_each(labels_I: np.ndarray, num_images: int) -> list[int]:
    """Returns indices of the first images of every class, ordered by rank within the class, then by class.

    The number per class is ``num_images`` divided by the number of classes, rounded down, and at least two.
    """
    of_class = [np.flatnonzero(labels_I == label).tolist() for label in np.unique(labels_I)]
    per_class = max(2, num_images // len(of_class))
    return [
        images[rank]
        for rank in range(min(per_class, max(map(len, of_class))))
        for images in of_class
        if rank < len(images)
    ]


def _encode_images(run: _LoadedRun) -> tuple[dict[str, EncodedImages], int]:
    """Encodes the unseen images before training and at the checkpoint.

    Returns ``TRAINED`` and ``PRETRAINED`` mapped to the encoded images, and the checkpoint's step.
    """
    learner, readout = build_learner(run.config), _attribute_readout(run)

    def encode() -> EncodedImages:
        return encode_images(
            learner,
            "test",
            run.image_ids,
            readout=readout,
            num_attention=_num_attention(run) if run.has_built_in_birds else 0,
            flat=run.splits.test.attributes_IA is not None,
        )

    before = encode()
    learner.load(run.checkpoint.path)
    return {TRAINED: encode(), PRETRAINED: before}, learner.step


def _num_attention(run: _LoadedRun) -> int:
    return ATTENTION_IMAGES_PER_CLASS * len(run.splits.test.class_names)


def _attribute_readout(run: _LoadedRun) -> AttributeReadout | None:
    """Returns the read-out of the frozen MLLM; None, with a note, when the words of the attributes are not known."""
    spec = build_prompt(run.config)
    if not run.has_built_in_birds:
        run.notes.append("MLLM read-out, attribute probes, attention on parts: only the built-in birds have attributes")
        return None
    if not _asks_for_parts(spec):
        run.notes.append("MLLM read-out, its attention: the prompt does not ask for the parts of the built-in birds")
        return None
    family = build_family(run.config)
    tokenizer = family.load_tokenizer()
    try:
        template = build_template(tokenizer, spec, COLOR_WORDS)
    except DataError as error:
        run.notes.append(f"MLLM read-out, its attention: {error}")
        return None
    return AttributeReadout(
        family.load_backbone(dtype=torch_dtype(run.config), device=resolve_device(run.config.model.device)),
        tokenizer.encode(prompt_text(run.config, family), add_special_tokens=False),
        template,
        layer=run.config.objective.kl_layer,
    )


def _asks_for_parts(spec: PromptSpec) -> bool:
    """Returns True when the answer describes the parts of the built-in birds, whose true values are known."""
    return spec.variant == "structured" and spec.vocabulary.attribute_keys == PARTS


def _probes(run: _LoadedRun, observed: Mapping[str, EncodedImages]) -> Probes | None:
    values_IA = run.splits.test.attributes_IA
    if values_IA is None:
        return None  # the note of the attribute read-out covers the probes
    if len(np.unique(run.labels_I)) < MIN_CLASSES:
        run.notes.append(f"attribute probes: fewer than {MIN_CLASSES} unseen classes to divide")
        return None
    return probe_figures(
        observed,
        values_IA[run.image_ids],
        run.labels_I,
        run.splits.attribute_names,
        seed=run.config.run.seed,
    )


def _attention_shares(run: _LoadedRun, observed: Mapping[str, EncodedImages]) -> tuple[AttentionShares, ...]:
    if not run.has_built_in_birds:
        return ()
    per_class = min(ATTENTION_IMAGES_PER_CLASS, len(run.image_ids) // len(run.splits.test.class_names))
    birds = run.config.data.birds.model_copy(update={"test_images_per_class": per_class})
    # Masks are ordered by class; ``image_ids`` is ordered by rank within the class, then by class.
    by_rank = np.arange(per_class * len(run.splits.test.class_names)).reshape(-1, per_class).T.flatten()
    return attention_share_figures(observed, scene_masks("test", birds)[by_rank])


def _loss_gradients(
    run: _LoadedRun, step: int
) -> tuple[Gradients | None, AttentionEntropy | None, tuple[StepCosines, ...]]:
    sampler = training_sampler(run.config, run.splits.train.labels_I)
    recorded = recorded_steps(load_run_config(run.run_dir), run.run_dir, sampler, near=step)
    steps = list(islice((one for one in recorded if one.groups), STEPS))
    if not steps:
        run.notes.append("gradients, entropy of the targets: no recorded group that carries a gradient")
        return None, None, ()
    gradients, entropy = measure_loss_gradients(run.config, run.checkpoint.path, steps[0])
    between = step_cosines(run.config, run.checkpoint.path, steps, _oracle(run)) if len(steps) > 1 else ()
    return gradients, entropy, between


def _oracle(run: _LoadedRun) -> Oracle | None:
    """Returns the oracle of the training pairs; None when the prompt or the data set rules out the MLLM read-out."""
    if not run.has_built_in_birds or not _asks_for_parts(build_prompt(run.config)):
        return None
    assert run.splits.train.attributes_IA is not None
    return Oracle(run.config, run.splits.train.attributes_IA)


def _steps(run: _LoadedRun) -> tuple[StepFigure, ...]:
    path = run.run_dir / "metrics.jsonl"
    found = early_and_late(MetricsLog(path).rows(allow_cut_tail=True) if path.exists() else [])
    if not found:
        run.notes.append("verdicts and contributing groups: the run has no step with rollouts")
    return tuple(
        StepFigure(metric=one.metric, early=one.early, late=one.late, num_steps=one.num_steps) for one in found
    )
