"""The file ``results.json`` with the measurements of a run; types and ranges are validated when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from saga_dist.errors import DataError
from saga_dist.utils.atomic_io import write_atomic

RESULTS_NAME = "results.json"
PRETRAINED, TRAINED = "pre-trained", "trained"
"""Names of the methods of a training run."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A share in [0, 1]."""


class _ResultRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SplitResult(_ResultRecord):
    """Retrieval among the images of one split. Recall@K is the share of queries with a hit among the K nearest."""

    recall_at_1: Share
    """Recall@1."""
    recall_at_2: Share
    """Recall@2, at least Recall@1."""
    recall_at_4: Share
    """Recall@4, at least Recall@2."""
    recall_at_8: Share
    """Recall@8, at least Recall@4."""
    nmi: Share
    """Normalised mutual information between classes and k-means clusters."""
    confidence_interval: tuple[Share, Share]
    """95 % interval of Recall@1, by a bootstrap over classes."""
    num_queries: int = Field(ge=1)
    """Number of queries."""
    num_classes: int = Field(ge=1)
    """Number of classes among the queries."""
    num_unfindable: int = Field(0, ge=0)
    """Number of queries whose class has no other image; they count as misses."""
    map_at_r: Share | None = None
    """Mean average precision at R; None when it was not computed."""
    r_precision: Share | None = None
    """Precision at R; None when it was not computed."""

    @model_validator(mode="after")
    def _figures_agree(self) -> SplitResult:
        recalls = (self.recall_at_1, self.recall_at_2, self.recall_at_4, self.recall_at_8)
        if list(recalls) != sorted(recalls):
            raise ValueError(f"Recall@1, 2, 4, 8 = {recalls}; expected no decrease")
        if self.confidence_interval[0] > self.confidence_interval[1]:
            raise ValueError(f"confidence_interval = {self.confidence_interval}; expected low <= high")
        if self.num_unfindable > self.num_queries:
            raise ValueError(f"{self.num_unfindable} unfindable of {self.num_queries} queries")
        return self

    @property
    def unfindable_remark(self) -> str:
        """A remark on the queries whose class has no other image; empty when there are none."""
        return unfindable_remark(self.num_unfindable, self.num_queries)


class VerdictResult(_ResultRecord):
    """Verdicts of the frozen MLLM on pairs of one split, by greedy decoding from the encoder's tokens."""

    same_accuracy: Share
    """Share of right verdicts on pairs of one class."""
    different_accuracy: Share
    """Share of right verdicts on pairs of two classes."""
    json_valid_share: Share
    """Share of completions that are valid JSON."""
    num_same: int = Field(ge=0)
    """Number of pairs of one class."""
    num_different: int = Field(ge=0)
    """Number of pairs of two classes."""


class TrainingFacts(_ResultRecord):
    """Facts about an encoder's training, without which two rows of a table cannot be compared."""

    metric_loss: str | None = None
    """Metric loss by its name in the configuration; None where none trained."""
    optimizer_steps: int | None = Field(None, ge=0)
    """Optimizer steps of the training; None when they are not known."""
    selected_step: int | None = Field(None, ge=0)
    """Step whose model was evaluated, counted from 1; None without training, or when it is not known."""
    images_seen: int | None = Field(None, ge=0)
    """Images in the micro-batches of all these steps, repetitions included; None when they are not known."""
    image_height: int | None = Field(None, ge=1)
    """Height of the encoder's input in pixels; None when it is not known."""
    image_width: int | None = Field(None, ge=1)
    """Width of the encoder's input in pixels; None when it is not known."""
    pretraining: str | None = None
    """Checkpoint that the training started from, or what is known of it; None when nothing is known."""
    remark: str | None = None
    """Remark on a training to which the frozen MLLM contributed little or nothing, with the cause; None without one."""


class MethodResult(_ResultRecord):
    """Results of one encoder, a row of the table."""

    name: str = Field(min_length=1)
    """Name of the method."""
    splits: dict[str, SplitResult]
    """Retrieval results by split."""
    seeds: tuple[int, ...]
    """All seeds that affect this row."""
    wall_s: float = Field(ge=0)
    """Wall seconds of training and evaluation."""
    optimizer_steps: int = Field(0, ge=0)
    """Number of optimizer steps of the training; 0 without training."""
    selected_step: int = Field(0, ge=0)
    """Step selected on validation classes, at most ``optimizer_steps``."""
    verdicts: dict[str, VerdictResult] = Field(default_factory=dict)
    """The MLLM's verdicts on fixed pairs, by split: ``train`` and ``test``."""
    probes: dict[str, Share] | None = None
    """Linear-probe accuracy per attribute on unseen classes; None when it was not measured."""
    training: TrainingFacts | None = None
    """Facts about the training of the encoder; None in results of version 0.1.0."""

    @model_validator(mode="after")
    def _step_exists(self) -> MethodResult:
        if self.selected_step > self.optimizer_steps:
            raise ValueError(f"selected_step = {self.selected_step} of {self.optimizer_steps} steps")
        return self


class Results(_ResultRecord):
    """Results of all methods of a run, the content of ``results.json``."""

    format_version: Literal[1] = 1
    """Version of the file's format."""
    methods: list[MethodResult]
    """Results by method; the names differ."""
    backbone_unchanged: bool | None = None
    """True when the frozen MLLM's weights were bit-identical after training; None when this was not checked."""

    @model_validator(mode="after")
    def _names_differ(self) -> Results:
        names = [method.name for method in self.methods]
        if len(set(names)) != len(names):
            raise ValueError(f"methods are named {names}; expected each name once")
        return self

    def method(self, name: str) -> MethodResult:
        """Returns the row of that name.

        Raises:
            DataError: there is none.
        """
        for method in self.methods:
            if method.name == name:
                return method
        raise DataError(f"no method {name!r}", expected=f"one of {', '.join(method.name for method in self.methods)}")

    def save(self, path: Path) -> None:
        """Writes the results to a file atomically."""
        write_atomic(path, (self.model_dump_json(indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Results:
        """Returns the results in a file.

        Raises:
            DataError: the file cannot be read, or is not a results file of this version.
        """
        try:
            return cls.model_validate_json(path.read_text("utf-8"))
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", where=str(path), expected="a results.json") from error
        except UnicodeDecodeError as error:
            raise DataError("is not UTF-8 text", where=str(path), expected="a results.json") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"]) or "file"
            raise DataError(f"{key}: {first['msg'].lower()}", where=str(path), expected="a results.json") from error


def unfindable_remark(num_unfindable: int, num_queries: int) -> str:
    """Returns a remark on queries whose class has no other image; empty when there are none."""
    if not num_unfindable:
        return ""
    return (
        f"{num_unfindable:,} of {num_queries:,} queries cannot be found and count as misses: their class has no other "
        "image"
    )


def unfindable_remarks(methods: Sequence[MethodResult]) -> list[str]:
    """Returns the remark on each split that has such queries, after its name; its queries are the same for all rows."""
    remarks = {
        split: result.unfindable_remark
        for method in methods
        for split, result in method.splits.items()
        if result.num_unfindable
    }
    return [f"{split}: {remark}" for split, remark in remarks.items()]
