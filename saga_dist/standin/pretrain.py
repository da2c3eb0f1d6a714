"""Makes the stand-in's weights: ``python -m saga_dist.standin.pretrain --out DIR [--seed S]``.

Three stages on birds of species that no downstream split uses. The tower alone learns to see the parts and the flowers
(the shortcut of the world); the language model alone learns to compare two descriptions; then both learn to answer the
comparison prompt, and the attention of one language layer is tied to the part being named, as a large MLLM's attention
is by itself. Hints about where to look, which a large model does not get, keep this at minutes on two cores.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from saga_dist.standin.checkpoint import Architecture, build_model, save_checkpoint, write_manifest
from saga_dist.standin.examine import examine
from saga_dist.standin.pair_model import PairModel
from saga_dist.standin.pretraining_tasks import BirdLibrary, ImageHeads, PairTask, PairTaskBuilder
from saga_dist.standin.world import pretraining_images
from saga_dist.utils.rng import counter_generator, counter_seed

logger = logging.getLogger(__name__)

# Wider than Hugging Face's 0.02, with which so small a language model stays on a plateau for hundreds of steps.
ARCHITECTURE = Architecture(language_init_std=0.08)
MATCHING_LAYER = 0
GROUNDED_LAYER = 1
BATCH_SIZE = 64
IMAGES_PER_SPECIES = 4


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: how long, how fast, and what counts."""

    name: str
    steps: int
    tower_rate: float = 0.0
    """0: no images, text alone."""
    language_rate: float = 0.0
    """0: the language model is not used at all."""
    value_weight: float = 0.0
    part_weight: float = 0.0
    flower_weight: float = 0.0
    grounding_weight: float = 0.0
    compare_weight: float = 0.0


STAGES: tuple[Stage, ...] = (
    Stage("see", 500, tower_rate=1.5e-3, value_weight=1.0, part_weight=2.0, flower_weight=1.0),
    Stage("reason", 120, language_rate=2e-3, compare_weight=0.2),
    Stage(
        "answer",
        700,
        tower_rate=1e-3,
        language_rate=1.2e-3,
        part_weight=0.5,
        flower_weight=1.0,
        grounding_weight=0.4,
        compare_weight=0.2,
    ),
)


def pretrain(
    out: Path, *, seed: int = 0, stages: Sequence[Stage] = STAGES, images_per_species: int = IMAGES_PER_SPECIES
) -> Path:
    """Returns ``out`` after training from scratch and writing the model folder and its manifest into it.

    Args:
        out: folder to write.
        seed: of weights, images and order.
        stages: the curriculum.
        images_per_species: how many images of each of the 3,982 species are drawn.
    """
    started = time.monotonic()
    architecture = ARCHITECTURE
    torch.manual_seed(counter_seed("standin pretrain", seed))
    model = build_model(architecture, seed=seed).train()
    reader = PairModel(model, image_size=architecture.image_size)
    heads = ImageHeads(architecture.width)
    library = BirdLibrary(pretraining_images(images_per_species, seed=seed))
    logger.info("drew the images in %.0f s", time.monotonic() - started)
    for stage in stages:
        run_stage(stage, reader, heads, library, seed=seed)
    model.eval()
    figures = examine(reader)
    save_checkpoint(model, architecture, out)
    write_manifest(
        out,
        command=f"python -m saga_dist.standin.pretrain --out DIR --seed {seed} --threads {torch.get_num_threads()}",
        seed=seed,
        stages=[asdict(stage) for stage in stages],
        figures=figures,
        seconds=round(time.monotonic() - started),
    )
    logger.info("wrote %s after %.0f s: %s", out, time.monotonic() - started, figures)
    return out


def run_stage(stage: Stage, reader: PairModel, heads: ImageHeads, library: BirdLibrary, *, seed: int) -> None:
    """Trains model and heads in place for one stage."""
    tower = [*reader.model.model.visual.parameters(), *heads.parameters()]
    language = list(reader.model.model.language_model.parameters()) if stage.language_rate else []
    optimizer = torch.optim.AdamW(
        [{"params": tower, "rate": stage.tower_rate}, {"params": language, "rate": stage.language_rate}],
        weight_decay=0.01,
    )
    teacher = PairTaskBuilder(reader)
    started = time.monotonic()
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * _rate_factor(step / stage.steps)
        generator = counter_generator("standin pretrain", seed, stage.name, step)
        losses = _losses(stage, reader, heads, library, teacher, generator)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_([*tower, *language], 1.0)
        optimizer.step()
        if step % 50 == 49 or step + 1 == stage.steps:
            shown = ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            logger.info("%s %d/%d: %s (%.0f s)", stage.name, step + 1, stage.steps, shown, time.monotonic() - started)


def _losses(
    stage: Stage,
    reader: PairModel,
    heads: ImageHeads,
    library: BirdLibrary,
    teacher: PairTaskBuilder,
    generator: np.random.Generator,
) -> dict[str, torch.Tensor]:
    """The weighted losses of one step, by name."""
    losses: dict[str, torch.Tensor] = {}
    if not stage.tower_rate:
        lesson = teacher.text_lesson(generator, BATCH_SIZE)
        with reader.attention_at(MATCHING_LAYER) as matching, reader.attention_at(GROUNDED_LAYER) as rows:
            hidden = reader.hidden_of_text(lesson.answers_PT[:, :-1])
        losses["answer"] = _answer_loss(reader, hidden, lesson)
        losses["matches"] = stage.compare_weight * teacher.match_loss(matching[0], lesson.answers_PT)
        losses["notes"] = stage.compare_weight * teacher.note_loss(rows[0])
        return losses
    species = (
        library.related_species(generator, BATCH_SIZE // 2)
        if stage.language_rate
        else generator.integers(0, len(library.species), BATCH_SIZE)
    )
    batch = library.draw(generator, species)
    tokens = reader.encode(batch.images)
    if stage.value_weight:
        losses["values"] = stage.value_weight * heads.value_loss(tokens.main_IND, batch)
    if stage.part_weight:
        losses["parts"] = stage.part_weight * heads.part_loss(tokens.main_IND, batch)
    if stage.flower_weight:
        losses["flowers"] = stage.flower_weight * heads.flower_loss(tokens.main_IND, batch)
    if not stage.language_rate:
        return losses
    lesson = teacher.lesson(generator, batch.values_IA.numpy())
    with reader.attention_at(MATCHING_LAYER) as matching, reader.attention_at(GROUNDED_LAYER) as rows:
        hidden = reader.hidden(tokens[lesson.first], tokens[lesson.second], lesson.answers_PT[:, :-1])
    losses["answer"] = _answer_loss(reader, hidden, lesson)
    if stage.grounding_weight:
        losses["grounding"] = stage.grounding_weight * teacher.grounding_loss(rows[0], lesson, batch.part_centres)
    if stage.compare_weight:
        losses["matches"] = stage.compare_weight * teacher.match_loss(matching[0], lesson.answers_PT)
        losses["notes"] = stage.compare_weight * teacher.note_loss(rows[0])
    return losses


def _answer_loss(reader: PairModel, hidden: torch.Tensor, lesson: PairTask) -> torch.Tensor:
    """Mean negative log-likelihood of the taught tokens."""
    losses = F.cross_entropy(reader.model.lm_head(hidden).transpose(1, 2), lesson.answers_PT, reduction="none")
    return (losses * lesson.taught_PT).sum() / lesson.taught_PT.sum()


def _rate_factor(progress: float) -> float:
    """Linear warm-up over 8 % of a stage, then a cosine to nearly nothing."""
    return min(1.0, progress / 0.08) * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-3


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m saga_dist.standin.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(parsed.threads)
    pretrain(parsed.out, seed=parsed.seed)


if __name__ == "__main__":
    main()
