"""From a run directory to its evidence: every instrument that this run can bear, and a line for each that it cannot.

The weights are those of the selected checkpoint (the newest where none is selected). Unseen images come from the test
split; nothing is chosen by what is seen there.
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
from saga_dist.diagnostics.probes import FEWEST_CLASSES
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
    resolve_device,
    torch_dtype,
)
from saga_dist.standin.language import COLOR_WORDS, PARTS
from saga_dist.standin.masks import scene_masks

LOOKS_PER_CLASS = 4
"""Images of each class on which it is measured where attention lies."""


@dataclass
class _LoadedRun:
    """A run on the bench."""

    run_dir: Path
    config: RunConfig
    checkpoint: CheckpointInfo
    splits: Splits
    image_ids: list[int]
    """[I] of the test split: the first image of each class, then the second of each, and so on."""
    notes: list[str] = field(default_factory=list)

    @property
    def labels_I(self) -> np.ndarray:  # noqa: N802  (shape suffix)
        """[I] classes of the images."""
        return self.splits.test.labels_I[self.image_ids]

    @property
    def drawn(self) -> bool:
        """Whether the images are the built-in birds, of which everything is known."""
        return self.config.data.layout == "birds"


def measure(run_dir: Path, *, num_images: int) -> Evidence:
    """Returns the evidence of a run.

    Args:
        run_dir: with ``config.json`` and a checkpoint.
        num_images: of the test split, at most; equally many of each class.

    Raises:
        ConfigError: there is no run.
        CheckpointError: it has no valid checkpoint.
        DataError: its images are not there, or not those that were recorded.
    """
    started = time.monotonic()
    bench = _set_up(run_dir, num_images)
    observed, step = _encode_images(bench)
    gradients, spread, between = _loss_gradients(bench, step)
    seed = bench.config.run.seed
    return Evidence(
        step=step,
        num_images=len(bench.image_ids),
        num_classes=len(np.unique(bench.labels_I)),
        recalls=recall_figures(
            observed, bench.labels_I, seed=seed, resamples=bench.config.evaluation.bootstrap_resamples
        ),
        probes=_probes(bench, observed),
        steps=_steps(bench),
        gradients=gradients,
        step_cosines=between,
        spread=spread,
        looks=_looks(bench, observed),
        notes=tuple(bench.notes),
        seconds=time.monotonic() - started,
    )


def _set_up(run_dir: Path, num_images: int) -> _LoadedRun:
    config = _without_unused_birds(load_run_config(run_dir))
    checkpoint = _selected(run_dir)
    splits = build_splits(config.data, seed=config.run.seed)
    return _LoadedRun(run_dir, config, checkpoint, splits, _first_of_each(splits.test.labels_I, num_images))


def _without_unused_birds(config: RunConfig) -> RunConfig:
    """The same run without the drawn birds that nobody looks at here: those of validation and for other probes."""
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
    """The first images of every class, by rank within the class, then by class."""
    of_class = [np.flatnonzero(labels_I == label).tolist() for label in np.unique(labels_I)]
    per_class = max(2, num_images // len(of_class))
    return [
        images[rank]
        for rank in range(min(per_class, max(map(len, of_class))))
        for images in of_class
        if rank < len(images)
    ]


def _encode_images(bench: _LoadedRun) -> tuple[dict[str, EncodedImages], int]:
    """What the encoder makes of the unseen images, before training and at the checkpoint; and the latter's step."""
    learner, reader = build_learner(bench.config), _reader(bench)

    def look() -> EncodedImages:
        return encode_images(
            learner,
            "test",
            bench.image_ids,
            reader=reader,
            num_looks=_num_looks(bench) if bench.drawn else 0,
            flat=bench.splits.test.attributes_IA is not None,
        )

    before = look()
    learner.load(bench.checkpoint.path)
    return {TRAINED: look(), PRETRAINED: before}, learner.step


def _num_looks(bench: _LoadedRun) -> int:
    return LOOKS_PER_CLASS * len(bench.splits.test.class_names)


def _reader(bench: _LoadedRun) -> AttributeReadout | None:
    """The frozen MLLM, where the words that it may say of each attribute are known."""
    spec = build_prompt(bench.config)
    if not bench.drawn:
        bench.notes.append(
            "MLLM read-out, attribute probes, attention on parts: only the built-in birds have attributes"
        )
        return None
    if not _asks_for_parts(spec):
        bench.notes.append("MLLM read-out, its attention: the prompt does not ask for the parts of the built-in birds")
        return None
    family = build_family(bench.config)
    tokenizer = family.load_tokenizer()
    try:
        template = build_template(tokenizer, spec, COLOR_WORDS)
    except DataError as error:
        bench.notes.append(f"MLLM read-out, its attention: {error}")
        return None
    return AttributeReadout(
        family.load_backbone(dtype=torch_dtype(bench.config), device=resolve_device(bench.config.model.device)),
        tokenizer.encode(prompt_text(bench.config, family), add_special_tokens=False),
        template,
        layer=bench.config.objective.kl_layer,
    )


def _asks_for_parts(spec: PromptSpec) -> bool:
    """Returns True when the answer names the parts of the built-in birds, of which the truth is known."""
    return spec.variant == "structured" and spec.vocabulary.attribute_keys == PARTS


def _probes(bench: _LoadedRun, observed: Mapping[str, EncodedImages]) -> Probes | None:
    values_IA = bench.splits.test.attributes_IA
    if values_IA is None:
        return None  # the reader's note says so
    if len(np.unique(bench.labels_I)) < FEWEST_CLASSES:
        bench.notes.append(f"attribute probes: fewer than {FEWEST_CLASSES} unseen classes to divide")
        return None
    return probe_figures(
        observed,
        values_IA[bench.image_ids],
        bench.labels_I,
        bench.splits.attribute_names,
        seed=bench.config.run.seed,
    )


def _looks(bench: _LoadedRun, observed: Mapping[str, EncodedImages]) -> tuple[AttentionShares, ...]:
    if not bench.drawn:
        return ()
    per_class = min(LOOKS_PER_CLASS, len(bench.image_ids) // len(bench.splits.test.class_names))
    birds = bench.config.data.birds.model_copy(update={"test_images_per_class": per_class})
    # Drawn class by class; the images on the bench go round the classes.
    in_turn = np.arange(per_class * len(bench.splits.test.class_names)).reshape(-1, per_class).T.flatten()
    return attention_share_figures(observed, scene_masks("test", birds)[in_turn])


def _loss_gradients(
    bench: _LoadedRun, step: int
) -> tuple[Gradients | None, AttentionEntropy | None, tuple[StepCosines, ...]]:
    sampler = training_sampler(bench.config, bench.splits.train.labels_I)
    recorded = recorded_steps(load_run_config(bench.run_dir), bench.run_dir, sampler, near=step)
    steps = list(islice((one for one in recorded if one.groups), STEPS))
    if not steps:
        bench.notes.append("gradients, entropy of the targets: no recorded group that carries a gradient")
        return None, None, ()
    gradients, spread = measure_loss_gradients(bench.config, bench.checkpoint.path, steps[0])
    between = step_cosines(bench.config, bench.checkpoint.path, steps, _oracle(bench)) if len(steps) > 1 else ()
    return gradients, spread, between


def _oracle(bench: _LoadedRun) -> Oracle | None:
    """Who knows the true text of a training pair; nobody where the MLLM read-out is missing, as its note says."""
    if not bench.drawn or not _asks_for_parts(build_prompt(bench.config)):
        return None
    assert bench.splits.train.attributes_IA is not None
    return Oracle(bench.config, bench.splits.train.attributes_IA)


def _steps(bench: _LoadedRun) -> tuple[StepFigure, ...]:
    path = bench.run_dir / "metrics.jsonl"
    found = early_and_late(MetricsLog(path).rows(allow_cut_tail=True) if path.exists() else [])
    if not found:
        bench.notes.append("verdicts and contributing groups: the run has no step with rollouts")
    return tuple(
        StepFigure(metric=one.metric, early=one.early, late=one.late, num_steps=one.num_steps) for one in found
    )
