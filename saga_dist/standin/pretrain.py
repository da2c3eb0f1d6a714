"""Makes the stand-in's weights: ``python -m saga_dist.standin.pretrain --out DIR [--seed S]``.

Four stages on birds of species that no downstream split uses. First the tower alone learns to see the parts; then tower
and language model learn the JSON answer; then the tokens also come to encode the flowers (the shortcut of the world);
last, the attention of one language layer is tied to the part being named, as a large MLLM's attention is by itself.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from saga_dist.counters import counter_generator, counter_seed
from saga_dist.standin.checkpoint import Architecture, build_model, save_checkpoint, write_manifest
from saga_dist.standin.examine import examine
from saga_dist.standin.lessons import BirdLibrary, ImageHeads, PairTeacher
from saga_dist.standin.reader import PairReader
from saga_dist.standin.world import pretraining_images

logger = logging.getLogger(__name__)

GROUNDED_LAYER = 1
BATCH_SIZE = 64
IMAGES_PER_SPECIES = 4


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: how long, how fast, and what counts."""

    name: str
    steps: int
    tower_rate: float
    language_rate: float = 0.0
    """0: the language model is not used at all."""
    value_weight: float = 0.0
    part_weight: float = 0.0
    flower_weight: float = 0.0
    grounding_weight: float = 0.0


STAGES: tuple[Stage, ...] = (
    Stage("see", 600, tower_rate=1.5e-3, value_weight=1.0, part_weight=2.0),
    Stage("compare", 500, tower_rate=7e-4, language_rate=1.2e-3, part_weight=0.5),
    Stage("flowers", 250, tower_rate=1e-3, language_rate=1e-3, part_weight=0.5, flower_weight=1.0),
    Stage("ground", 250, tower_rate=1e-3, language_rate=1e-3, part_weight=0.5, flower_weight=1.0, grounding_weight=0.4),
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
    architecture = Architecture()
    torch.manual_seed(counter_seed("standin pretrain", seed))
    model = build_model(architecture, seed=seed).train()
    reader = PairReader(model, image_size=architecture.image_size)
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
        command=f"python -m saga_dist.standin.pretrain --out DIR --seed {seed}",
        seed=seed,
        stages=[asdict(stage) for stage in stages],
        figures=figures,
        seconds=round(time.monotonic() - started),
    )
    logger.info("wrote %s after %.0f s: %s", out, time.monotonic() - started, figures)
    return out


def run_stage(stage: Stage, reader: PairReader, heads: ImageHeads, library: BirdLibrary, *, seed: int) -> None:
    """Trains model and heads in place for one stage."""
    tower = [*reader.model.model.visual.parameters(), *heads.parameters()]
    language = list(reader.model.model.language_model.parameters()) if stage.language_rate else []
    optimizer = torch.optim.AdamW(
        [{"params": tower, "rate": stage.tower_rate}, {"params": language, "rate": stage.language_rate}],
        weight_decay=0.01,
    )
    teacher = PairTeacher(reader)
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
    reader: PairReader,
    heads: ImageHeads,
    library: BirdLibrary,
    teacher: PairTeacher,
    generator: np.random.Generator,
) -> dict[str, torch.Tensor]:
    """The weighted losses of one step, by name."""
    species = (
        library.related_species(generator, BATCH_SIZE // 2)
        if stage.language_rate
        else generator.integers(0, len(library.species), BATCH_SIZE)
    )
    batch = library.draw(generator, species)
    tokens = reader.encode(batch.images)
    losses: dict[str, torch.Tensor] = {}
    if stage.value_weight:
        losses["values"] = stage.value_weight * heads.value_loss(tokens.main_IND, batch)
    if stage.part_weight:
        losses["parts"] = stage.part_weight * heads.part_loss(tokens.main_IND, batch)
    if stage.flower_weight:
        losses["flowers"] = stage.flower_weight * heads.flower_loss(tokens.main_IND, batch)
    if not stage.language_rate:
        return losses
    lesson = teacher.lesson(generator, batch.values_IA.numpy())
    with reader.attention_at(GROUNDED_LAYER) if stage.grounding_weight else nullcontext([]) as rows:
        hidden = reader.hidden(tokens[lesson.first], tokens[lesson.second], lesson.answers_PT[:, :-1])
    token_losses = F.cross_entropy(reader.model.lm_head(hidden).transpose(1, 2), lesson.answers_PT, reduction="none")
    losses["answer"] = (token_losses * lesson.taught_PT).sum() / lesson.taught_PT.sum()
    if stage.grounding_weight:
        losses["grounding"] = stage.grounding_weight * teacher.grounding_loss(rows[0], lesson, batch.part_centres)
    return losses


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
