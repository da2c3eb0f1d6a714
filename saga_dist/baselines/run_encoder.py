"""The encoder of a SAGA run as a ``FrozenEncoder``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from saga_dist.baselines.frozen_encoder import EncoderCard, EncoderSpec
from saga_dist.config import load_run_config
from saga_dist.models.encoder import load
from saga_dist.retrieval.results import TrainingFacts
from saga_dist.training.training_facts import training_facts


class RunEncoder:
    """Tower and pooler of a run; implements ``FrozenEncoder``.

    Args:
        spec: specification with a run directory or a folder with a saved encoder, and the option ``family`` (see
            ``saga_dist.load``).
        device: device of the weights.

    Raises:
        CheckpointError: there is no encoder, or it is damaged.
    """

    def __init__(self, spec: EncoderSpec, device: torch.device) -> None:
        folder = Path(spec.name).expanduser()
        self._encoder = load(folder, device=device, family=spec.options.get("family", ""))
        pooler = self._encoder.pooler.describe()
        size = self._encoder.image_size
        self.card = EncoderCard(
            spec=spec.text,
            backbone=f"{self._encoder.tower.family} tower",
            pretraining=_training(folder),
            pooling=str(pooler["kind"]),
            preprocessing="the whole image, bicubic",
            dimension=self._encoder.embedding_dim,
            parameters=sum(parameter.numel() for parameter in self._encoder.parameters()),
            image_height=size,
            image_width=size,
            training=_facts(folder),
        )

    def encode(self, images: Sequence[Image]) -> np.ndarray:
        """Returns the embeddings of images, float32 [I, E], l2-normalised."""
        return self._encoder.encode(images)


def _is_run(folder: Path) -> bool:
    """Returns True for a run directory, False for the folder of a saved encoder."""
    return (folder / "config.json").is_file() and not (folder / "manifest.json").is_file()


def _facts(folder: Path) -> TrainingFacts:
    """Returns the facts about the training; without the run, none but that there was one."""
    return training_facts(load_run_config(folder), folder) if _is_run(folder) else TrainingFacts()


def _training(folder: Path) -> str:
    """Returns model, steps, data and losses of a run, in one line."""
    if not _is_run(folder):
        return "an encoder's folder: its run is not beside it"
    config = load_run_config(folder)
    objective = config.objective
    return (
        f"{config.model.path}, then {config.run.steps} steps on {config.data.layout}: {objective.lambda_dml:g} x "
        f"{objective.metric_loss}, {objective.lambda_lm:g} x GRPO, {objective.lambda_kl:g} x attention alignment"
    )
