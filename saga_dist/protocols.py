"""The seams of the system: what the coordinator asks of a learner, of worker pools, and what an engine must do.

Two runtimes stand behind these protocols, serial (this process) and Ray (actors), and the coordinator cannot tell which
one it has. A *handle* is an ``EncoderTokens`` / ``TokenGradients`` record in the serial runtime and an object-store
reference in Ray: the coordinator passes handles on and never opens them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from saga_dist.types import (
    Completions,
    EncoderTokens,
    ImagePair,
    LogProbMismatch,
    MicroBatch,
    Quarantined,
    ReplayTask,
    RolloutTask,
    Sampling,
    ScoredGroup,
    StepResult,
    TokenGradients,
)

TaskT = TypeVar("TaskT", contravariant=True)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Answer to ``Learner.encode``: one token handle per pair of the micro-batch, in its order."""

    handles: tuple[Any, ...]
    num_bytes: int
    """Size of all published tokens."""


@dataclass(frozen=True, slots=True)
class GradientHandle:
    """A group's token gradients by handle, with the numbers the coordinator reports."""

    pair_id: str
    handle: Any
    loss: float
    num_tokens: int
    mismatch: LogProbMismatch

    @classmethod
    def of(cls, gradients: TokenGradients, handle: Any = None) -> GradientHandle:
        """Returns the coordinator's view of ``gradients``; ``handle`` defaults to the record itself."""
        return cls(
            pair_id=gradients.pair_id,
            handle=gradients if handle is None else handle,
            loss=gradients.loss,
            num_tokens=gradients.num_tokens,
            mismatch=gradients.mismatch,
        )


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Embeddings of one split: ``values_IE`` float32 [I, E] l2-normalised, ``labels_I`` int64 [I]."""

    values_IE: np.ndarray
    labels_I: np.ndarray
    attributes_IA: np.ndarray | None = None
    """[I, A] int64 ground-truth attributes where the data has them (the built-in birds)."""
    attribute_names: tuple[str, ...] = ()
    """A names."""


@runtime_checkable
class Engine(Protocol):
    """Generates completions from encoder tokens with the frozen MLLM. Any exception means: replace the engine."""

    def generate(
        self, tokens: Sequence[EncoderTokens], samplings: Sequence[Sampling], *, deadline_s: float
    ) -> list[Completions]:
        """Returns one ``Completions`` per pair, in order.

        Raises:
            EngineError: the engine failed.
            DeadlineExceeded: not finished after ``deadline_s`` seconds.
        """

    def close(self) -> None:
        """Frees the engine's memory; it cannot be used afterwards."""


@runtime_checkable
class RolloutWorker(Protocol):
    """A stateless function from tasks to scored groups."""

    def rollout(self, tasks: Sequence[RolloutTask], tokens: Sequence[EncoderTokens]) -> list[ScoredGroup]:
        """Returns one scored group per task, in order. ``tokens`` are the opened handles of the tasks."""

    def close(self) -> None: ...


@runtime_checkable
class ReplayWorker(Protocol):
    """A stateless function from a scored group to the gradient at its encoder tokens."""

    def replay(self, task: ReplayTask, tokens: EncoderTokens, behaviour: EncoderTokens | None = None) -> TokenGradients:
        """Returns dL_GRPO/d(tokens) and the attention targets of one group.

        ``tokens`` and ``behaviour`` are the opened handles of the task.
        """

    def backbone_digest(self) -> str:
        """Returns the sha256 over the frozen backbone's weights: equal before and after any run."""


class WorkerPool(Protocol[TaskT, ResultT]):
    """Workers behind one queue. Tasks are independent; a pool retries, replaces workers and keeps every wait finite."""

    def submit(self, tasks: Sequence[TaskT]) -> None:
        """Queues tasks; returns at once."""

    def collect(self) -> list[ResultT | Quarantined]:
        """Returns at least one finished result, or an empty list when nothing is pending.

        A task on which workers failed on every allowed attempt comes back as ``Quarantined``.

        Raises:
            UserError: a worker found a mistake that every other worker would find too.
            WorkerError: more tasks were set aside than the run allows, or no worker could be brought up in time.
        """

    def poll(self) -> list[ResultT | Quarantined]:
        """Returns the finished results that are here, perhaps none; never waits. Raises what ``collect`` raises."""

    @property
    def num_pending(self) -> int:
        """Tasks submitted and not yet collected."""

    def metrics(self) -> dict[str, float]:
        """Returns plain quantities since the last call (leases, retries, replacements, busy seconds, idle share)."""

    def forget(self) -> None:
        """Drops every task that is pending and every result that was not collected; late answers are ignored."""

    def close(self) -> None: ...


class Learner(Protocol):
    """Owns encoder, pooler, metric loss and optimizer."""

    @property
    def step(self) -> int:
        """Optimizer steps done so far; also the encoder version."""

    def labels(self, split: str) -> np.ndarray:
        """Returns the int64 [I] labels of a split, empty without such a split: only the learner reaches the images."""

    def split_hash(self) -> str:
        """Returns the sha256 of which images, classes and labels the splits hold; a resume must not change it."""

    def encode(self, batch: MicroBatch) -> EncodedBatch:
        """Encodes the images, back-propagates the metric loss to the tokens, publishes the tokens of every pair."""

    def encode_no_grad(self, batch: MicroBatch) -> EncodedBatch:
        """Publishes the tokens of every pair of a later step's batch at today's version; leaves the open step alone."""

    def finish_step(self, handles: Sequence[Any]) -> StepResult:
        """Injects token gradients, adds the attention alignment, clips, and takes one optimizer step."""

    def embed(self, split: str, *, pretrained: bool = False) -> Embeddings:
        """Returns the embeddings of a split (``train``, ``val``, ``test``, ``gallery``, ``probe``).

        With ``pretrained`` the pooler is left out: normalised mean of the main tokens, the zero-shot row of a table.
        """

    def encode_pairs(self, split: str, pairs: Sequence[ImagePair]) -> list[Any]:
        """Returns token handles for evaluation pairs of a split, without gradient or augmentation."""

    def save(self, folder: Path) -> None:
        """Writes the training state (weights, optimizer, schedule) into an existing folder."""

    def load(self, folder: Path) -> None:
        """Restores what ``save`` wrote."""

    def save_encoder(self, folder: Path) -> None:
        """Writes the deployable encoder (tower + pooler, no MLLM)."""


@runtime_checkable
class Runtime(Protocol):
    """A learner and two pools, brought up together and closed together."""

    @property
    def learner(self) -> Learner:
        """The learner, the only part that training changes."""

    @property
    def rollouts(self) -> WorkerPool[RolloutTask, ScoredGroup]:
        """The pool that generates and scores groups of completions."""

    @property
    def replays(self) -> WorkerPool[ReplayTask, GradientHandle]:
        """The pool that differentiates scored groups at their encoder tokens."""

    def restart_learner(self) -> None:
        """Puts a new learner in the place of one that was lost; it knows nothing until it loads a checkpoint.

        Raises:
            SagaError: a new one could not be brought up in time.
        """

    def backbone_digest(self) -> str:
        """Returns the sha256 over the frozen backbone that replay differentiates through ('' without rollouts)."""

    def watch(self, run_dir: Path) -> None:
        """Lets `saga-dist scale` reach the workers through files in the run directory, until ``close``."""

    def close(self) -> None: ...
