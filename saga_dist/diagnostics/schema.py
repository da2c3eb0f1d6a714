"""``evidence.json``: what the instruments measured on one run, typed and strict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saga_dist.errors import DataError
from saga_dist.utils.atomic_io import write_output

EVIDENCE_NAME = "evidence.json"

TRAINED, PRETRAINED, NOBODY = "trained", "pre-trained", ""
EMBEDDING, MEAN, TOKENS, READ_OUT = "embedding z", "mean of X", "all of X", "MLLM read-out"
"""What of an image is looked at: the pooled embedding, the mean of its tokens, all its tokens, and the frozen MLLM's
distributions over each attribute's words."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[float, Field(ge=0)]


class _EvidenceRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RecallFigure(_EvidenceRecord):
    """Recall@1 among images of unseen classes, each searching all others."""

    encoder: str
    space: str
    recall_at_1: Share
    interval: tuple[Share, Share]
    """95 %, by a bootstrap over classes."""


class ProbeColumn(_EvidenceRecord):
    """How often each attribute is told right on classes that the probe did not see; the read-out needs no probe."""

    encoder: str
    space: str
    accuracy: tuple[Share, ...]
    """[A]."""
    error: tuple[Size, ...]
    """[A] standard errors over classes."""
    mean: Share
    mean_error: Size


class ProbeChange(_EvidenceRecord):
    """Trained minus pre-trained on the same images."""

    space: str
    difference: tuple[float, ...]
    """[A]; below 0: forgotten."""
    error: tuple[Size, ...]
    mean: float
    mean_error: Size


class Probes(_EvidenceRecord):
    """Attribute by attribute."""

    attributes: tuple[str, ...]
    chance: tuple[Share, ...]
    """[A]: always naming the commonest value of the fitting half."""
    columns: tuple[ProbeColumn, ...]
    changes: tuple[ProbeChange, ...]


class StepFigure(_EvidenceRecord):
    """A metric of training steps: mean over the first fifth of them and over the last."""

    metric: str
    early: float
    late: float
    num_steps: Count


class LossNorms(_EvidenceRecord):
    """Gradient of one loss at weight 1."""

    loss: str
    weight: Size
    """Its weight in this run."""
    tower: Size
    pooler: Size
    encoder: Size


class LossCosine(_EvidenceRecord):
    """Whether two losses pull the same way; None where one of them does not pull."""

    losses: tuple[str, str]
    tower: float | None
    pooler: float | None
    encoder: float | None


class Gradients(_EvidenceRecord):
    """Three losses on one recorded step."""

    step: Count
    num_groups: Count
    num_same: Count
    """Groups of one class among them."""
    norms: tuple[LossNorms, ...]
    cosines: tuple[LossCosine, ...]


class StepCosines(_EvidenceRecord):
    """Gradients of one loss at one checkpoint, from several recorded steps."""

    loss: str
    """``text``: the true text of each pair, in place of the completions."""
    part: str
    """Of the encoder, where it is looked at."""
    num_steps: Count
    between_steps: float | None
    """Mean cosine of two steps' gradients; None with fewer than two."""
    along_text: float | None
    """Mean cosine with the gradient of the true text of the same step; None where there is none to compare with."""


class AttentionEntropy(_EvidenceRecord):
    """Entropy in nats of the attention targets, and of the pooler on the same training images."""

    teacher: Size
    pooler: Size
    uniform: Size
    divergence: float
    """KL(target || pooler)."""
    num_completions: Count


class AttentionShares(_EvidenceRecord):
    """Where attention lies on unseen images, as shares of all attention on the image."""

    who: str
    encoder: str
    """Whose tokens are looked at; ``NOBODY`` where it does not matter."""
    part: Share
    """On the part whose word is written; of who names none, mean over the parts."""
    bird: Share
    distractors: Share
    entropy: Size
    """Nats."""


class Evidence(_EvidenceRecord):
    """All figures of a run. What could not be measured is None or empty, and ``notes`` says why."""

    format_version: Literal[1] = 1
    step: Count
    """Optimizer steps of the weights that were looked at."""
    num_images: Count
    num_classes: Count
    recalls: tuple[RecallFigure, ...] = ()
    probes: Probes | None = None
    steps: tuple[StepFigure, ...] = ()
    gradients: Gradients | None = None
    step_cosines: tuple[StepCosines, ...] = ()
    spread: AttentionEntropy | None = None
    looks: tuple[AttentionShares, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Size = 0.0

    def save(self, path: Path) -> None:
        """Writes the file in one piece.

        Raises:
            ConfigError: it cannot be written.
        """
        write_output(path, (self.model_dump_json(indent=2) + "\n").encode(), option="--json")

    @classmethod
    def load(cls, path: Path) -> Evidence:
        """Returns the figures in a file.

        Raises:
            DataError: it cannot be read, or is no such file of this version.
        """
        expected, fix = "what `saga-dist evidence show` wrote", "measure again"
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", where=str(path), expected=expected) from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"]) or "file"
            raise DataError(f"{key}: {first['msg'].lower()}", where=str(path), expected=expected, fix=fix) from error
