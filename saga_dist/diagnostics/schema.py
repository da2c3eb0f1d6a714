"""The records of ``evidence.json``: the results of all diagnostics of one run, as strict pydantic models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from saga_dist.errors import DataError
from saga_dist.utils.atomic_io import write_atomic

EVIDENCE_NAME = "evidence.json"

TRAINED, PRETRAINED, NOBODY = "trained", "pre-trained", ""
"""Values of a record's ``encoder``: the encoder at the checkpoint, the encoder before training, and no encoder."""
EMBEDDING, MEAN, TOKENS, READ_OUT = "embedding z", "mean of X", "all of X", "MLLM read-out"
"""Values of a record's ``space``, the representation of an image: the pooled embedding, the mean of its tokens, all its
tokens, and the frozen MLLM's distributions over the words of each attribute."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A fraction in [0, 1]."""
Count = Annotated[int, Field(ge=0)]
"""A non-negative integer."""
Size = Annotated[float, Field(ge=0)]
"""A non-negative number."""


class _EvidenceRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RecallFigure(_EvidenceRecord):
    """Recall@1 on images of unseen classes; each image is a query against all others."""

    encoder: str
    """``TRAINED`` or ``PRETRAINED``."""
    space: str
    """Representation of the images: ``EMBEDDING``, ``MEAN`` or ``READ_OUT``."""
    recall_at_1: Share
    """Share of images whose nearest neighbour has the same class."""
    interval: tuple[Share, Share]
    """95 % confidence interval of ``recall_at_1``, by a bootstrap over classes."""


class ProbeColumn(_EvidenceRecord):
    """Attribute accuracy of linear probes on classes that they were not fitted on, or of the MLLM's read-out."""

    encoder: str
    """``TRAINED`` or ``PRETRAINED``."""
    space: str
    """Representation of the images: ``EMBEDDING``, ``MEAN``, ``TOKENS`` or ``READ_OUT``, which needs no probe."""
    accuracy: tuple[Share, ...]
    """[A] share of images whose attribute value is predicted correctly."""
    error: tuple[Size, ...]
    """[A] standard errors of ``accuracy``, with classes as the independent draws."""
    mean: Share
    """Mean accuracy over the attributes."""
    mean_error: Size
    """Standard error of ``mean``."""


class ProbeChange(_EvidenceRecord):
    """Change of attribute accuracy by training: trained minus pre-trained, on the same images."""

    space: str
    """Representation of the images: ``MEAN``, ``TOKENS`` or ``READ_OUT``."""
    difference: tuple[float, ...]
    """[A] differences of accuracy, in [-1, 1]; negative where training lost accuracy."""
    error: tuple[Size, ...]
    """[A] standard errors of ``difference``, with classes as the independent draws."""
    mean: float
    """Mean difference over the attributes, in [-1, 1]."""
    mean_error: Size
    """Standard error of ``mean``."""


class Probes(_EvidenceRecord):
    """Attribute accuracy in every representation of the images."""

    attributes: tuple[str, ...]
    """[A] names."""
    chance: tuple[Share, ...]
    """[A] accuracy of always predicting the most frequent value of the half of the classes used for fitting."""
    columns: tuple[ProbeColumn, ...]
    """One record for each encoder and representation."""
    changes: tuple[ProbeChange, ...]
    """One record for each representation that both encoders have."""


class StepFigure(_EvidenceRecord):
    """A metric of training steps, early and late in the run."""

    metric: str
    """Name of the metric in ``metrics.jsonl``."""
    early: float
    """Mean over the first fifth of the steps that have the metric."""
    late: float
    """Mean over the last fifth of the steps that have the metric."""
    num_steps: Count
    """Number of steps that have the metric."""


class LossNorms(_EvidenceRecord):
    """l2 norms of the gradient of one loss at weight 1."""

    loss: str
    """``dml``, ``grpo`` or ``kl``."""
    weight: Size
    """Weight of the loss in this run."""
    tower: Size
    """Norm over the parameters of the tower."""
    pooler: Size
    """Norm over the parameters of the pooler."""
    encoder: Size
    """Norm over the parameters of tower and pooler."""


class LossCosine(_EvidenceRecord):
    """Cosine similarity of the gradients of two losses, in [-1, 1]; None when one of the gradients is zero."""

    losses: tuple[str, str]
    """Two of ``dml``, ``grpo`` and ``kl``."""
    tower: float | None
    """Cosine over the parameters of the tower."""
    pooler: float | None
    """Cosine over the parameters of the pooler."""
    encoder: float | None
    """Cosine over the parameters of tower and pooler."""


class Gradients(_EvidenceRecord):
    """Gradients of the three losses on one recorded step."""

    step: Count
    """Number of the recorded step."""
    num_groups: Count
    """Contributing groups of the step."""
    num_same: Count
    """Contributing groups whose two images have the same class."""
    norms: tuple[LossNorms, ...]
    """One record for each loss."""
    cosines: tuple[LossCosine, ...]
    """One record for each pair of losses."""


class StepCosines(_EvidenceRecord):
    """Cosine similarities of the gradients of one loss on several recorded steps, all at one checkpoint."""

    loss: str
    """``dml``, ``grpo`` or ``kl``; or ``text``, the true answer to each pair in place of its completions."""
    part: str
    """Part of the encoder whose gradient is compared: ``tower`` or ``pooler``."""
    num_steps: Count
    """Recorded steps with a non-zero gradient."""
    between_steps: float | None
    """Mean cosine of the gradients of two steps, in [-1, 1]; None with fewer than two steps."""
    along_text: float | None
    """Mean cosine with the gradient of ``text`` on the same step, in [-1, 1]; None without a gradient to compare."""


class AttentionEntropy(_EvidenceRecord):
    """Entropies, in nats, of the attention targets and of the pooler's weights on the same training images."""

    teacher: Size
    """Mean entropy of the attention targets of the completions with reward 1."""
    pooler: Size
    """Mean entropy of the pooler's weights."""
    uniform: Size
    """Mean entropy of uniform weights, ln N."""
    divergence: float
    """Mean KL(target || pooler) of one image."""
    num_completions: Count
    """Number of completions that have attention targets."""


class AttentionShares(_EvidenceRecord):
    """Shares of the attention on unseen images that fall on regions of the image, and its entropy."""

    who: str
    """Source of the attention: a name from ``attention_localization``."""
    encoder: str
    """``TRAINED`` or ``PRETRAINED``, the encoder of the tokens; ``NOBODY`` for uniform attention."""
    part: Share
    """Share on the part whose word is generated; the mean over all parts for attention that is not tied to one part."""
    bird: Share
    """Share on the whole bird."""
    distractors: Share
    """Share on the flowers."""
    entropy: Size
    """Mean entropy over the tokens of the image, nats."""


class Evidence(_EvidenceRecord):
    """Results of all diagnostics of one run. A result that could not be measured is None or empty, with a note."""

    format_version: Literal[1] = 1
    """Version of the file format."""
    step: Count
    """Optimizer steps of the measured weights."""
    num_images: Count
    """Number of unseen images."""
    num_classes: Count
    """Number of their classes."""
    recalls: tuple[RecallFigure, ...] = ()
    """Recall@1 for each encoder and representation."""
    probes: Probes | None = None
    """Attribute accuracy; None for data without attributes, or with too few classes."""
    steps: tuple[StepFigure, ...] = ()
    """Verdict accuracy and contributing groups, early and late in training."""
    gradients: Gradients | None = None
    """Gradients of each loss on one recorded step; None without a recorded group that carries a gradient."""
    step_cosines: tuple[StepCosines, ...] = ()
    """Agreement of the gradients of several recorded steps; empty with fewer than two steps."""
    spread: AttentionEntropy | None = None
    """Entropies of the attention targets and of the pooler; None when no group has attention targets."""
    looks: tuple[AttentionShares, ...] = ()
    """Shares of attention on parts, bird and flowers; empty for data other than the built-in birds."""
    notes: tuple[str, ...] = ()
    """One line for each result that is missing, with the reason."""
    seconds: Size = 0.0
    """Duration of the measurement, seconds."""

    def save(self, path: Path) -> None:
        """Writes the file atomically.

        Raises:
            ConfigError: the file cannot be written.
        """
        write_atomic(path, (self.model_dump_json(indent=2) + "\n").encode(), option="--json")

    @classmethod
    def load(cls, path: Path) -> Evidence:
        """Returns the results in a file.

        Raises:
            DataError: the file cannot be read, or is not an ``evidence.json`` of this version.
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
