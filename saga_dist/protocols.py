"""Interfaces between the parts: engine, rollout and replay workers, worker pool, learner and runtime.

Two runtimes implement these protocols, serial (one process) and Ray (actors); the coordinator depends on the protocols
only. A *handle* is an ``EncoderTokens`` or ``TokenGradients`` record in the serial runtime and a reference into the
object store in Ray. The coordinator passes handles on and never reads the records behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from saga_dist.types import (
    Completions,
    EncoderTokens,
    GradientTask,
    ImagePair,
    LogProbMismatch,
    MicroBatch,
    Quarantined,
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
    """Result of ``Learner.encode``: handles of the encoder tokens of a micro-batch."""

    handles: tuple[Any, ...]
    """[P] one handle of ``EncoderTokens`` per pair of the micro-batch, in its order."""
    num_bytes: int
    """Size of the tokens of all pairs, bytes."""


@dataclass(frozen=True, slots=True)
class GradientHandle:
    """Handle of the token gradients of a pair, with the numbers that the coordinator reports."""

    pair_id: str
    """Id of the pair."""
    handle: Any
    """Handle of the ``TokenGradients``."""
    loss: float
    """The group's part of L_GRPO, divided by |T|; or the pair's part of L_verdict, divided by the step's pairs."""
    num_tokens: int
    """Generated tokens of the group; or tokens of both verdicts."""
    mismatch: LogProbMismatch
    """Differences between the log-probabilities of engine and replay."""

    @classmethod
    def of(cls, gradients: TokenGradients, handle: Any = None) -> GradientHandle:
        """Returns a handle of token gradients.

        Args:
            gradients: the token gradients of a pair.
            handle: reference to them; None: the record itself is the handle.
        """
        return cls(
            pair_id=gradients.pair_id,
            handle=gradients if handle is None else handle,
            loss=gradients.loss,
            num_tokens=gradients.num_tokens,
            mismatch=gradients.mismatch,
        )


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Embeddings and labels of the images of one split."""

    values_IE: np.ndarray
    """float32 [I, E], l2-normalised."""
    labels_I: np.ndarray
    """int64 [I], class of each image."""
    attributes_IA: np.ndarray | None = None
    """int64 [I, A], ground-truth attributes; None for data without attributes (only the built-in birds have them)."""
    attribute_names: tuple[str, ...] = ()
    """A names of the attributes."""


@runtime_checkable
class Engine(Protocol):
    """Generates completions from encoder tokens with the frozen MLLM.

    After an exception other than a ``UserError`` the engine is replaced.
    """

    def generate(
        self, tokens: Sequence[EncoderTokens], samplings: Sequence[Sampling], *, deadline_s: float
    ) -> list[Completions]:
        """Returns one ``Completions`` per pair, in order.

        Args:
            tokens: encoder tokens of the pairs.
            samplings: sampling parameters of each pair.
            deadline_s: longest time that the call may take, seconds.

        Raises:
            EngineError: the engine failed.
            DeadlineExceeded: the completions were not finished after ``deadline_s`` seconds.
            UserError: the request is wrong, for example too long for ``max_model_len``; the engine remains usable.
        """

    def close(self) -> None:
        """Frees the engine's memory; the engine cannot be used afterwards."""


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """An engine whose batch groups may join and leave at any time (continuous batching); optional for an own engine.

    A group is identified by the pair id of its tokens. Groups are generated within ``step`` only, and a group has the
    completions of ``generate``, whatever else is in the batch. ``generate`` is called only while the batch is empty.
    Errors are those of ``generate``; a ``UserError`` leaves the groups in the batch as they are.
    """

    def add(self, tokens: EncoderTokens, sampling: Sampling) -> None:
        """Adds one group to the batch.

        Args:
            tokens: encoder tokens of the pair, of which no group is in the batch.
            sampling: sampling parameters.

        Raises:
            UserError: the request is wrong, for example too long for ``max_model_len``.
        """

    def step(self) -> list[Completions]:
        """Generates the next token of every completion in the batch, or more; returns the groups that are finished."""

    def abort(self, pair_ids: Collection[str]) -> None:
        """Removes the groups of these pairs from the batch; ignores other ids. The pairs may be added again."""


@runtime_checkable
class RolloutWorker(Protocol):
    """Generates and scores groups of completions; keeps no state between calls of ``rollout``."""

    @property
    def can_be_fed(self) -> bool:
        """True when ``advance`` may be called: groups can join and leave the engine's batch (``StreamingEngine``)."""

    @property
    def in_flight(self) -> tuple[str, ...]:
        """Ids of the pairs that ``advance`` was given and has neither returned nor cancelled."""

    def rollout(self, tasks: Sequence[RolloutTask], tokens: Sequence[EncoderTokens]) -> list[ScoredGroup]:
        """Returns one scored group per task, in order.

        Args:
            tasks: the groups to generate.
            tokens: the records behind ``tokens`` of each task.
        """

    def advance(
        self,
        tasks: Sequence[RolloutTask],
        tokens: Sequence[EncoderTokens],
        *,
        cancelled: Collection[str],
        interrupted: Callable[[], bool],
    ) -> list[ScoredGroup]:
        """Generates until a group is finished, or until ``interrupted()``; returns the groups that are finished.

        All other groups stay in the engine's batch for the next call. At most one of ``advance`` and ``rollout`` is
        used with a worker.

        Args:
            tasks: groups that join the batch.
            tokens: the records behind ``tokens`` of each task.
            cancelled: ids of pairs whose groups leave the batch first; other ids are ignored.
            interrupted: called after every step of the engine; True ends the call.
        """

    def close(self) -> None:
        """Closes the engine."""


@runtime_checkable
class ReplayWorker(Protocol):
    """Computes the gradient of a scored group, or of a verdict, at its encoder tokens; keeps no state between calls."""

    def replay(
        self, task: GradientTask, tokens: EncoderTokens, behaviour: EncoderTokens | None = None
    ) -> TokenGradients:
        """Returns dL_GRPO/d(tokens) and the attention targets of one group, or dL_verdict/d(tokens) of one pair.

        Args:
            task: the group or the pair, and the denominator of the step.
            tokens: the record behind ``task.tokens``.
            behaviour: the record behind ``task.behaviour``; None when the task has none.
        """

    def backbone_digest(self) -> str:
        """Returns the sha256 of the frozen backbone's weights, which no run changes."""


class WorkerPool(Protocol[TaskT, ResultT]):
    """Workers behind one queue of independent tasks.

    A pool retries failed tasks, replaces failed workers, and bounds every wait by a deadline.
    """

    def submit(self, tasks: Sequence[TaskT]) -> None:
        """Queues tasks; does not wait for them."""

    def collect(self) -> list[ResultT | Quarantined]:
        """Returns at least one finished result, or an empty list when nothing is pending.

        The result of a task on which workers failed on every allowed attempt is ``Quarantined``.

        Raises:
            UserError: a worker found a mistake of the user, which would fail on every other worker too.
            WorkerError: more tasks were quarantined than the run allows, or no worker could be started in time.
        """

    def poll(self) -> list[ResultT | Quarantined]:
        """Returns the finished results, an empty list when there are none; does not wait.

        Raises the errors of ``collect``.
        """

    @property
    def num_pending(self) -> int:
        """Number of tasks that were submitted and whose results were not collected."""

    @property
    def runs_in_background(self) -> bool:
        """True when tasks run as soon as they are submitted, and not only while the caller waits in ``collect``."""

    def metrics(self) -> dict[str, float]:
        """Returns the pool's metrics since the last call (leases, retries, replacements, busy seconds, idle share)."""

    def cancel(self, pair_ids: Collection[str]) -> None:
        """Drops the tasks of these pairs that are pending, and their uncollected results; ignores other ids."""

    def forget(self) -> None:
        """Drops all pending tasks and all uncollected results; answers that arrive later are ignored."""

    def close(self) -> None:
        """Ends the workers and drops all tasks."""


class Learner(Protocol):
    """Encoder, pooler, metric loss and optimizer: all that training changes."""

    @property
    def step(self) -> int:
        """Number of optimizer steps done; also the encoder version."""

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of a split, int64 [I]; empty when the data has no such split.

        The coordinator reads the labels here, because only the learner has access to the images.
        """

    def training_images(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Returns training images before augmentation, uint8 [H, W, 3] each, to be shown.

        Args:
            indices: indices into the training split.
        """

    def split_hash(self) -> str:
        """Returns the sha256 of the images, classes and labels of all splits; a resume must not change it."""

    def tower_digest(self) -> str:
        """Returns the sha256 of the vision tower's present weights."""

    def encode(self, batch: MicroBatch) -> EncodedBatch:
        """Encodes the images, back-propagates the metric loss to their tokens, publishes the tokens of every pair."""

    def encode_no_grad(self, batch: MicroBatch) -> EncodedBatch:
        """Encodes a later micro-batch with the present encoder and publishes the tokens of every pair.

        The state of the open step does not change. The tokens have the bits of those of ``encode``.
        """

    def expect(self, batches: Sequence[MicroBatch]) -> None:
        """Starts reading the images of micro-batches that will probably be encoded soon; does not wait.

        An image that cannot be read is an error when its micro-batch is encoded, not here.

        Args:
            batches: micro-batches of this or later steps; their pairs are not used.
        """

    def finish_step(self, handles: Sequence[Any]) -> StepResult:
        """Takes one optimizer step: injects token gradients, adds the attention alignment, clips, updates.

        Args:
            handles: handles of the ``TokenGradients`` of the step.
        """

    def embed(self, split: str, *, pretrained: bool = False) -> Embeddings:
        """Returns the embeddings of a split.

        Args:
            split: ``train``, ``val``, ``test``, ``gallery`` or ``probe``.
            pretrained: True for the normalised mean of the main tokens, without the pooler: the zero-shot row of a
                table.
        """

    def encode_pairs(self, split: str, pairs: Sequence[ImagePair]) -> list[Any]:
        """Returns one token handle per evaluation pair, without gradient or augmentation.

        Args:
            split: name of the split.
            pairs: pairs of its images.
        """

    def save(self, folder: Path) -> None:
        """Writes the training state (weights, optimizer, step) into an existing folder."""

    def load(self, folder: Path) -> None:
        """Restores the training state that ``save`` wrote."""

    def save_encoder(self, folder: Path) -> None:
        """Writes the deployable encoder (tower and pooler, no MLLM)."""


@runtime_checkable
class Runtime(Protocol):
    """The learner, the rollout pool and the replay pool of a run."""

    @property
    def learner(self) -> Learner:
        """The learner."""

    @property
    def rollouts(self) -> WorkerPool[RolloutTask, ScoredGroup]:
        """The pool that generates and scores groups of completions."""

    @property
    def replays(self) -> WorkerPool[GradientTask, GradientHandle]:
        """The pool that computes gradients of scored groups, or of verdicts, at their encoder tokens."""

    def restart_learner(self) -> None:
        """Starts a new learner in place of a lost one; it has initial weights until it loads a checkpoint.

        Raises:
            SagaError: the new learner could not be started in time.
        """

    def backbone_digest(self) -> str:
        """Returns the sha256 of the frozen backbone that replay differentiates through; empty without an MLLM."""

    def take_checkpoint_request(self) -> bool:
        """Returns True once when a checkpoint should be written out of turn, because the learner may soon be lost."""

    def watch(self, run_dir: Path) -> None:
        """Accepts requests of `saga-dist scale` through files in the run directory, until ``close``."""

    def close(self) -> None:
        """Ends learner and workers."""
