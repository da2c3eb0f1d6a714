"""Trains the stand-in's weights: ``python -m saga_dist.standin.pretrain --out DIR [--seed S]``.

There are three stages, on birds of species that no downstream split uses. First the tower alone learns to recognise the
parts and the flowers (the shortcut of the data set); then the language model alone learns to compare two descriptions;
then both learn to answer the comparison prompt, and a loss ties the attention of one language layer to the part being
named, as the attention of a large MLLM is without such a loss. These auxiliary attention losses, which a large model
does not need, keep the training at minutes on two cores.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from saga_dist.standin.checkpoint import Architecture, build_model, save_checkpoint, write_manifest
from saga_dist.standin.examine import examine
from saga_dist.standin.forced import examine_forced
from saga_dist.standin.pair_model import PairModel, Tokens
from saga_dist.standin.pretraining_tasks import BirdLibrary, ImageBatch, ImageHeads, PairTask, PairTaskBuilder
from saga_dist.standin.world import pretraining_images
from saga_dist.utils.rng import counter_generator, counter_seed

logger = logging.getLogger(__name__)

# Hugging Face's default of 0.02 keeps so small a language model on a plateau for hundreds of steps.
ARCHITECTURE = Architecture(language_init_std=0.08)
MATCHING_LAYER = 0
"""Language layer whose attention ``PairTaskBuilder.match_loss`` trains."""
GROUNDED_LAYER = 1
"""Language layer whose attention ``note_loss`` and ``grounding_loss`` train."""
BATCH_SIZE = 64
"""Images, or pairs without images, per step."""
IMAGES_PER_SPECIES = 4


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the training: number of steps, learning rates and loss weights; a weight of 0 omits the loss."""

    name: str
    """Name of the stage; part of the key of its random choices."""
    steps: int
    """Optimizer steps."""
    tower_rate: float = 0.0
    """Peak learning rate of tower and read-out heads; 0: no images, text only."""
    language_rate: float = 0.0
    """Peak learning rate of the language model; 0: the language model is not used."""
    value_weight: float = 0.0
    """Weight of ``ImageHeads.value_loss``."""
    part_weight: float = 0.0
    """Weight of ``ImageHeads.part_loss``."""
    flower_weight: float = 0.0
    """Weight of ``ImageHeads.flower_loss``."""
    grounding_weight: float = 0.0
    """Weight of ``PairTaskBuilder.grounding_loss``."""
    compare_weight: float = 0.0
    """Weight of ``PairTaskBuilder.match_loss`` and ``note_loss``."""
    verdict_first_share: float = 0.0
    """Share of the couples, 0 to 1, whose verdict is also learnt as the first word of an answer; 0: none."""


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


def with_verdict_first(stages: Sequence[Stage], share: float) -> tuple[Stage, ...]:
    """Returns the stages with a share of verdict-first answers in every stage that answers about images.

    Batches and initial weights are the same as without; the weights that result are others, for a folder of their own.
    """
    return tuple(
        replace(stage, verdict_first_share=share) if stage.tower_rate and stage.language_rate else stage
        for stage in stages
    )


def pretrain(
    out: Path, *, seed: int = 0, stages: Sequence[Stage] = STAGES, images_per_species: int = IMAGES_PER_SPECIES
) -> Path:
    """Trains a stand-in from scratch, writes the model folder and its manifest, and returns ``out``.

    Args:
        out: folder to write.
        seed: seed of weights, images and order.
        stages: stages in order.
        images_per_species: images to draw of each of the 3,982 species.
    """
    started = time.monotonic()
    architecture = ARCHITECTURE
    torch.manual_seed(counter_seed("standin pretrain", seed))
    model = build_model(architecture, seed=seed).train()
    pair_model = PairModel(model, image_size=architecture.image_size)
    heads = ImageHeads(architecture.width)
    library = BirdLibrary(pretraining_images(images_per_species, seed=seed))
    logger.info("drew the images in %.0f s", time.monotonic() - started)
    for stage in stages:
        run_stage(stage, pair_model, heads, library, seed=seed)
    model.eval()
    figures, options = examine(pair_model), ""
    if share := max(stage.verdict_first_share for stage in stages):
        figures |= examine_forced(pair_model)
        options = f" --verdict-first {share:g}"
    save_checkpoint(model, architecture, out)
    write_manifest(
        out,
        command=f"python -m saga_dist.standin.pretrain --out DIR --seed {seed}{options} "
        f"--threads {torch.get_num_threads()}",
        seed=seed,
        stages=[asdict(stage) for stage in stages],
        figures=figures,
        seconds=round(time.monotonic() - started),
    )
    logger.info("wrote %s after %.0f s: %s", out, time.monotonic() - started, figures)
    return out


def run_stage(stage: Stage, pair_model: PairModel, heads: ImageHeads, library: BirdLibrary, *, seed: int) -> None:
    """Trains model and heads in place for one stage.

    Args:
        stage: steps, learning rates and loss weights.
        pair_model: the model to train.
        heads: read-out heads to train together with the tower.
        library: pre-training images.
        seed: seed of the batches.
    """
    tower = [*pair_model.model.model.visual.parameters(), *heads.parameters()]
    language = list(pair_model.model.model.language_model.parameters()) if stage.language_rate else []
    optimizer = torch.optim.AdamW(
        [{"params": tower, "rate": stage.tower_rate}, {"params": language, "rate": stage.language_rate}],
        weight_decay=0.01,
    )
    builder = PairTaskBuilder(pair_model)
    started = time.monotonic()
    for step in range(stage.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * _rate_factor(step / stage.steps)
        generator = counter_generator("standin pretrain", seed, stage.name, step)
        losses = _losses(stage, pair_model, heads, library, builder, generator)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_([*tower, *language], 1.0)
        optimizer.step()
        if step % 50 == 49 or step + 1 == stage.steps:
            shown = ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            logger.info("%s %d/%d: %s (%.0f s)", stage.name, step + 1, stage.steps, shown, time.monotonic() - started)


def _losses(
    stage: Stage,
    pair_model: PairModel,
    heads: ImageHeads,
    library: BirdLibrary,
    builder: PairTaskBuilder,
    generator: np.random.Generator,
) -> dict[str, torch.Tensor]:
    """Returns the weighted losses of one step by name, each a scalar."""
    losses: dict[str, torch.Tensor] = {}
    if not stage.tower_rate:
        task = builder.build_text_only(generator, BATCH_SIZE)
        with pair_model.attention_at(MATCHING_LAYER) as matching, pair_model.attention_at(GROUNDED_LAYER) as rows:
            hidden = pair_model.hidden_of_text(task.answers_PT[:, :-1])
        losses["answer"] = _answer_loss(pair_model, hidden, task)
        losses["matches"] = stage.compare_weight * builder.match_loss(matching[0], task.answers_PT)
        losses["notes"] = stage.compare_weight * builder.note_loss(rows[0])
        return losses
    species = (
        library.related_species(generator, BATCH_SIZE // 2)
        if stage.language_rate
        else generator.integers(0, len(library.species), BATCH_SIZE)
    )
    batch = library.draw(generator, species)
    tokens = pair_model.encode(batch.images)
    if stage.value_weight:
        losses["values"] = stage.value_weight * heads.value_loss(tokens.main_IND, batch)
    if stage.part_weight:
        losses["parts"] = stage.part_weight * heads.part_loss(tokens.main_IND, batch)
    if stage.flower_weight:
        losses["flowers"] = stage.flower_weight * heads.flower_loss(tokens.main_IND, batch)
    if not stage.language_rate:
        return losses
    task = builder.build(generator, batch.values_IA.numpy())
    with pair_model.attention_at(MATCHING_LAYER) as matching, pair_model.attention_at(GROUNDED_LAYER) as rows:
        hidden = pair_model.hidden(tokens[task.first], tokens[task.second], task.answers_PT[:, :-1])
    losses["answer"] = _answer_loss(pair_model, hidden, task)
    if stage.verdict_first_share:
        losses["verdict first"] = _verdict_first_loss(stage, pair_model, builder, tokens, task, batch)
    if stage.grounding_weight:
        losses["grounding"] = stage.grounding_weight * builder.grounding_loss(rows[0], task, batch.part_centres)
    if stage.compare_weight:
        losses["matches"] = stage.compare_weight * builder.match_loss(matching[0], task.answers_PT)
        losses["notes"] = stage.compare_weight * builder.note_loss(rows[0])
    return losses


def _verdict_first_loss(
    stage: Stage, pair_model: PairModel, builder: PairTaskBuilder, tokens: Tokens, task: PairTask, batch: ImageBatch
) -> torch.Tensor:
    """Returns the mean negative log-likelihood of verdicts that begin the answer, for a share of the step's couples."""
    short = builder.build_verdict_first(task, batch.values_IA.numpy(), stage.verdict_first_share)
    hidden = pair_model.hidden(tokens[short.first], tokens[short.second], short.answers_PT[:, :-1])
    return _answer_loss(pair_model, hidden, short)


def _answer_loss(pair_model: PairModel, hidden: torch.Tensor, task: PairTask) -> torch.Tensor:
    """Returns the mean negative log-likelihood of the answer tokens whose loss mask is 1."""
    losses = F.cross_entropy(pair_model.model.lm_head(hidden).transpose(1, 2), task.answers_PT, reduction="none")
    return (losses * task.loss_mask_PT).sum() / task.loss_mask_PT.sum()


def _rate_factor(progress: float) -> float:
    """Returns the factor on the learning rate: linear warm-up over 8 % of a stage times a cosine decay, plus 0.001.

    Args:
        progress: share of the stage's steps that are done, 0 to 1.
    """
    return min(1.0, progress / 0.08) * 0.5 * (1 + math.cos(math.pi * progress)) + 1e-3


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line ``python -m saga_dist.standin.pretrain``."""
    parser = argparse.ArgumentParser(prog="python -m saga_dist.standin.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--verdict-first",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the couples, 0 to 1, that are also answered with the verdict as the first word (default: none)",
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(parsed.threads)
    if not 0 <= parsed.verdict_first <= 1:
        parser.error(f"--verdict-first {parsed.verdict_first:g}; expected a share from 0 to 1")
    pretrain(parsed.out, seed=parsed.seed, stages=with_verdict_first(STAGES, parsed.verdict_first))


if __name__ == "__main__":
    main()
