"""``results.json``: what a run measured, typed and strict, so that a reader can trust every number it finds there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from saga_dist.errors import DataError
from saga_dist.utils.atomic_io import write_atomic

RESULTS_NAME = "results.json"
PRETRAINED, TRAINED = "pre-trained", "trained"
"""The methods of a training run."""

Share = Annotated[float, Field(ge=0, le=1)]


class _ResultRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SplitResult(_ResultRecord):
    """Retrieval among the images of one split. All figures are shares in [0, 1]."""

    recall_at_1: Share
    recall_at_2: Share
    recall_at_4: Share
    recall_at_8: Share
    nmi: Share
    confidence_interval: tuple[Share, Share]
    """95 % interval of Recall@1, by a bootstrap over classes."""
    num_queries: int = Field(ge=1)
    num_classes: int = Field(ge=1)
    num_unfindable: int = Field(0, ge=0)
    """Queries whose class has no other image: they count as misses."""
    map_at_r: Share | None = None
    r_precision: Share | None = None

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


class VerdictResult(_ResultRecord):
    """How the frozen MLLM judges pairs of one split from the encoder's tokens (greedy)."""

    same_accuracy: Share
    different_accuracy: Share
    json_valid_share: Share
    num_same: int = Field(ge=0)
    num_different: int = Field(ge=0)


class MethodResult(_ResultRecord):
    """One row of the table: an encoder, how it came about, and what it reached on each split."""

    name: str = Field(min_length=1)
    splits: dict[str, SplitResult]
    seeds: tuple[int, ...]
    """Every seed that went into this row."""
    wall_s: float = Field(ge=0)
    """Seconds of training and evaluation."""
    optimizer_steps: int = Field(0, ge=0)
    selected_step: int = Field(0, ge=0)
    """The step chosen on validation classes."""
    verdicts: dict[str, VerdictResult] = Field(default_factory=dict)
    """The MLLM's verdicts on fixed pairs of a split: ``train`` and ``test``."""
    probes: dict[str, Share] | None = None
    """Linear-probe accuracy per attribute on unseen classes."""

    @model_validator(mode="after")
    def _step_exists(self) -> MethodResult:
        if self.selected_step > self.optimizer_steps:
            raise ValueError(f"selected_step = {self.selected_step} of {self.optimizer_steps} steps")
        return self


class Results(_ResultRecord):
    """All rows of a run."""

    format_version: Literal[1] = 1
    methods: list[MethodResult]
    backbone_unchanged: bool | None = None
    """Whether the frozen MLLM's weights were bit-identical after training; None when there was none."""

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
        """Writes the file in one piece: a reader sees the old one or the new one."""
        write_atomic(path, (self.model_dump_json(indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Results:
        """Returns the results in a file.

        Raises:
            DataError: it cannot be read, or is no results file of this version.
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
