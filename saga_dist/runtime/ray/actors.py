"""Ray actors: each builds a plain worker or learner in its own process and converts payloads to and from Arrow.

Every actor has two threads. The default thread runs ``start`` and all work, so that a model is used in the thread that
built it; the thread of the concurrency group ``control`` answers ``health`` meanwhile. The plain object is built by
``start`` and not by ``__init__``, because Ray keeps the class of an error in a method, but converts an error in
``__init__`` to text.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import ray

from saga_dist.config import RunConfig
from saga_dist.errors import TrainingError
from saga_dist.protocols import Embeddings, EncodedBatch, GradientHandle, Learner, ReplayWorker, RolloutWorker
from saga_dist.runtime.build import build_learner, build_replay_worker, build_rollout_worker
from saga_dist.runtime.devices import ALLOCATOR_ENVIRONMENT
from saga_dist.runtime.ray.errors import WorkerInfo
from saga_dist.runtime.ray.object_refs import (
    LocalHandle,
    ObjectHandle,
    fetch_gradients,
    fetch_tokens,
    pack_gradients,
    put_tokens,
)
from saga_dist.types import EncoderTokens, GradientTask, ImagePair, MicroBatch, RolloutTask, StepResult, TokenGradients
from saga_dist.wire import groups_to_batch

FETCH_DEADLINE_S = 120.0
"""Longest wait for a payload from the object store of this or another node, seconds."""

_FORWARDED = (
    "DO_NOT_TRACK",
    "HF_HUB_OFFLINE",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_VERBOSITY",
    "VLLM_LOGGING_LEVEL",
    "VLLM_NO_USAGE_STATS",
    "VLLM_USE_V2_MODEL_RUNNER",
)
"""Environment variables that actors get from the driver's environment."""


@dataclass(frozen=True, slots=True)
class Factories:
    """Functions that build the plain object of each role from the configuration, in the actor's process; picklable."""

    learner: Callable[..., Learner] = build_learner
    """Function ``(config)`` that builds a learner; ``(config, ranks=...)`` for a learner of several processes."""
    rollout: Callable[[RunConfig], RolloutWorker] = build_rollout_worker
    """Function that builds a rollout worker."""
    replay: Callable[[RunConfig], ReplayWorker] = build_replay_worker
    """Function that builds a replay worker."""


class BaseActor:
    """Base of the Ray actors: sets working directory and logging, and has the calls ``start`` and ``health``.

    Args:
        config: the whole configuration.
        factories: functions that build the learner, the rollout worker and the replay worker that actors wrap.
        folder: working directory of the driver, which becomes the actor's if it exists on the actor's node.
    """

    role: ClassVar[str]
    """Name of the role, also of its custom resource; empty for an actor that needs no such resource."""
    environment: ClassVar[Mapping[str, str]] = {}
    """Environment variables of the actor's process, unless the driver's environment has others."""
    _is_fed = False
    """True: the actor has ``interrupt``, and its ``run`` takes tasks while others are in flight."""

    def __init__(self, config: RunConfig, factories: Factories, folder: str) -> None:
        self._config, self._factories = config, factories
        self._born = time.monotonic()
        logging.basicConfig(
            level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
        )
        logging.getLogger("saga_dist").setLevel(logging.INFO)
        if Path(folder).is_dir():
            os.chdir(folder)  # so that relative paths of the configuration are the same in every process

    @ray.method(concurrency_group="control")
    def health(self) -> float:
        """Returns the age of the actor in seconds; the heartbeat, which also returns while another call runs."""
        return time.monotonic() - self._born

    def start(self) -> WorkerInfo:
        """Builds the plain object and returns node and process of the actor."""
        self._build()
        try:
            stderr = str(Path("/proc/self/fd/2").readlink())
        except OSError:  # not Linux: errors then do not quote the log
            stderr = ""
        node_id = ray.get_runtime_context().get_node_id()
        return WorkerInfo(os.getpid(), platform.node(), node_id, stderr, self._is_fed)

    def close(self) -> None:
        """Frees what the plain object holds outside of this process; the actor is killed afterwards."""

    def _build(self) -> None:
        raise NotImplementedError


class RolloutActor(BaseActor):
    """Actor of a rollout worker: fetches encoder tokens by reference and returns Arrow batches of scored groups."""

    role = "rollout"

    def _build(self) -> None:
        self._worker = self._factories.rollout(self._config)
        self._is_fed = self._config.rollout.continuous_feeding and self._worker.can_be_fed
        self._interrupted = threading.Event()

    def run(self, tasks: Sequence[RolloutTask], cancelled: Sequence[str]) -> tuple[pa.RecordBatch, tuple[str, ...]]:
        """Returns scored groups as one Arrow batch, and the ids of the pairs that are still in flight.

        A worker that is fed returns when a group is finished, or after ``interrupt``. Another one returns the groups of
        all tasks, in their order.

        Args:
            tasks: new tasks.
            cancelled: ids of pairs in flight whose groups are dropped.
        """
        tokens = fetch_tokens([task.tokens for task in tasks], deadline_s=FETCH_DEADLINE_S)
        if not self._is_fed:
            return groups_to_batch(self._worker.rollout(tasks, tokens)), ()
        groups = self._worker.advance(tasks, tokens, cancelled=cancelled, interrupted=self._interrupted.is_set)
        self._interrupted.clear()  # only here: a call that waits for its turn must not miss an interruption
        return groups_to_batch(groups), self._worker.in_flight

    @ray.method(concurrency_group="control")
    def interrupt(self) -> None:
        """Makes the present call of ``run``, or the next one, return after a step of the engine."""
        self._interrupted.set()

    def close(self) -> None:
        """Closes the engine: its processes end and its shared memory is removed."""
        self._worker.close()


class ReplayActor(BaseActor):
    """Actor of a replay worker: fetches encoder tokens by reference and returns token gradients by reference."""

    role = "replay"
    environment = ALLOCATOR_ENVIRONMENT

    def _build(self) -> None:
        self._worker = self._factories.replay(self._config)

    def run(self, tasks: Sequence[GradientTask]) -> tuple[Any, ...]:
        """Returns a list of one ``GradientHandle`` per task, then one Arrow batch of token gradients per task.

        The batches are return values and not stored with ``ray.put``, so that the caller owns them and they outlive
        this process.
        """
        opened = zip(tasks, _open_replay(tasks), strict=True)
        gradients = [self._worker.replay(task, tokens, behaviour) for task, (tokens, behaviour) in opened]
        views = [GradientHandle.of(record, LocalHandle(record.pair_id)) for record in gradients]
        return (views, *(pack_gradients(record) for record in gradients))

    def backbone_digest(self) -> str:
        """Returns the sha256 of the frozen backbone."""
        return self._worker.backbone_digest()


class LearnerActor(BaseActor):
    """Actor of the learner; with ``replay.workers = 0`` it also replays, and token gradients stay in its process."""

    role = "learner"
    environment = ALLOCATOR_ENVIRONMENT
    _learner: Learner
    _replay_worker: ReplayWorker | None = None

    def _build(self) -> None:
        self._gradients: dict[str, TokenGradients] = {}
        self._learner = self._make_learner(self._config)
        if self._config.needs_mllm and self._config.replay.workers == 0:
            self._replay_worker = self._factories.replay(self._config)

    def reset(self, config: RunConfig) -> None:
        """Replaces the learner by a new one for ``config``; the replay worker, which has only frozen weights, stays."""
        self._gradients.clear()
        self._learner = self._make_learner(config)

    def step(self) -> int:
        """Returns the number of optimizer steps done."""
        return self._learner.step

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of a split."""
        return self._learner.labels(split)

    def training_images(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Returns training images before augmentation."""
        return self._learner.training_images(indices)

    def split_hash(self) -> str:
        """Returns the sha256 of the splits."""
        return self._learner.split_hash()

    def tower_digest(self) -> str:
        """Returns the sha256 of the tower's present weights."""
        return self._learner.tower_digest()

    def encode(self, batch: MicroBatch) -> EncodedBatch:
        """Encodes a micro-batch and stores one payload per pair; returns their handles."""
        return self._publish(self._learner.encode(batch))

    def encode_no_grad(self, batch: MicroBatch) -> EncodedBatch:
        """Encodes a later micro-batch with the present encoder; stores one payload per pair, returns the handles."""
        return self._publish(self._learner.encode_no_grad(batch))

    def expect(self, batches: Sequence[MicroBatch]) -> None:
        """Starts reading the images of micro-batches that come next; does not wait."""
        self._learner.expect(batches)

    def encode_pairs(self, split: str, pairs: Sequence[ImagePair]) -> list[ObjectHandle]:
        """Returns the token handles of evaluation pairs."""
        return [put_tokens(record) for record in self._learner.encode_pairs(split, pairs)]

    def replay(self, task: GradientTask) -> GradientHandle:
        """Replays one group in this process and keeps its token gradients for ``finish_step``."""
        if self._replay_worker is None:
            raise TrainingError("replay was called, but this process has no replay worker", where="learner")
        ((tokens, behaviour),) = _open_replay([task])
        gradients = self._replay_worker.replay(task, tokens, behaviour)
        self._gradients[gradients.pair_id] = gradients
        return GradientHandle.of(gradients, LocalHandle(gradients.pair_id))

    def finish_step(self, handles: Sequence[ObjectHandle | LocalHandle]) -> StepResult:
        """Fetches the token gradients and takes one optimizer step with them, in the order of ``handles``."""
        remote = [handle for handle in handles if isinstance(handle, ObjectHandle)]
        opened = {record.pair_id: record for record in fetch_gradients(remote, deadline_s=FETCH_DEADLINE_S)}
        missing = [handle.pair_id for handle in handles if handle.pair_id not in opened | self._gradients]
        if missing:
            raise TrainingError(
                "its token gradients are not here", where=f"pair {missing[0]}", fix="the same command resumes"
            )
        gradients = opened | self._gradients
        result = self._learner.finish_step([gradients[handle.pair_id] for handle in handles])
        self._gradients.clear()
        return result

    def embed(self, split: str, pretrained: bool) -> Embeddings:
        """Returns the embeddings of a split."""
        return self._learner.embed(split, pretrained=pretrained)

    def save(self, folder: Path) -> None:
        """Writes the training state into an existing folder."""
        self._learner.save(folder)

    def load(self, folder: Path) -> None:
        """Restores the training state that ``save`` wrote, and drops kept token gradients."""
        self._gradients.clear()
        self._learner.load(folder)

    def save_encoder(self, folder: Path) -> None:
        """Writes the deployable encoder."""
        self._learner.save_encoder(folder)

    @staticmethod
    def _publish(encoded: EncodedBatch) -> EncodedBatch:
        return EncodedBatch(tuple(put_tokens(record) for record in encoded.handles), encoded.num_bytes)

    def backbone_digest(self) -> str:
        """Returns the sha256 of the frozen backbone; empty when this process has none."""
        return self._replay_worker.backbone_digest() if self._replay_worker else ""

    def _make_learner(self, config: RunConfig) -> Learner:
        return self._factories.learner(config)


def _open_replay(tasks: Sequence[GradientTask]) -> list[tuple[EncoderTokens, EncoderTokens | None]]:
    """Fetches and returns, for each task, its present tokens and its behaviour tokens (None when it has none)."""
    older = [task.behaviour for task in tasks if task.behaviour is not None]
    records = fetch_tokens([task.tokens for task in tasks] + older, deadline_s=FETCH_DEADLINE_S)
    behaviours = iter(records[len(tasks) :])
    return [
        (record, None if task.behaviour is None else next(behaviours))
        for task, record in zip(tasks, records[: len(tasks)], strict=True)
    ]


def spawn(
    actor_type: type[BaseActor],
    config: RunConfig,
    factories: Factories,
    *,
    num_cpus: float,
    num_gpus: float,
    scheduling_strategy: Any = None,
) -> Any:
    """Returns the handle of a new actor; its process starts in the background.

    Ray neither restarts the actor nor retries its calls, because a pool or the coordinator decides how a failure is
    handled.

    Args:
        actor_type: class of the actor.
        config: the whole configuration.
        factories: functions that build the plain objects.
        num_cpus: CPUs that Ray reserves.
        num_gpus: GPUs that Ray reserves.
        scheduling_strategy: Ray's scheduling strategy; None for the default.
    """
    forwarded = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    environment = {**actor_type.environment, **forwarded}
    if config.runtime.threads:  # torch reads them when it is loaded, so they are set before the process starts
        environment |= {name: str(config.runtime.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    actor_class = ray.remote(concurrency_groups={"control": 1}, max_restarts=0, max_task_retries=0)(actor_type)
    options = actor_class.options(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        resources={actor_type.role: 1} if config.runtime.pin_roles and actor_type.role else None,
        scheduling_strategy=scheduling_strategy,
        runtime_env={"env_vars": environment},
    )
    return options.remote(config, factories, str(Path.cwd()))
