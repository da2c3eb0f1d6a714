"""Ray actors: thin shells that build a plain worker in a process of its own and move payloads in and out of Arrow.

Two threads per actor: the default one does the work (``start`` included: models live where they are used), the
``control`` one answers ``health`` while the other is busy. The plain class is built by ``start``, not by ``__init__``:
an error there then comes back as itself, while Ray turns an error in ``__init__`` into text.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
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
from saga_dist.runtime.ray.errors import WorkerInfo
from saga_dist.runtime.ray.object_refs import (
    LocalHandle,
    ObjectHandle,
    fetch_gradients,
    fetch_tokens,
    pack_gradients,
    put_tokens,
)
from saga_dist.types import EncoderTokens, ImagePair, MicroBatch, ReplayTask, RolloutTask, StepResult, TokenGradients
from saga_dist.wire import groups_to_batch

FETCH_DEADLINE_S = 120.0
"""Longest wait for a payload from the object store, other nodes included."""

_FORWARDED = (
    "DO_NOT_TRACK",
    "HF_HUB_OFFLINE",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_VERBOSITY",
    "VLLM_LOGGING_LEVEL",
    "VLLM_NO_USAGE_STATS",
)


@dataclass(frozen=True, slots=True)
class Factories:
    """How each role's plain class is built from the configuration; picklable, called in the actor's process."""

    learner: Callable[..., Learner] = build_learner
    """Of the configuration; of several processes also ``ranks``, this one's view of them."""
    rollout: Callable[[RunConfig], RolloutWorker] = build_rollout_worker
    replay: Callable[[RunConfig], ReplayWorker] = build_replay_worker


class BaseActor:
    """What all actors share: a place in the world, a log, a pulse."""

    role: ClassVar[str]

    def __init__(self, config: RunConfig, factories: Factories, folder: str) -> None:
        self._config, self._factories = config, factories
        self._born = time.monotonic()
        logging.basicConfig(
            level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
        )
        logging.getLogger("saga_dist").setLevel(logging.INFO)
        if Path(folder).is_dir():
            os.chdir(folder)  # relative paths of a configuration mean the same in every process

    @ray.method(concurrency_group="control")
    def health(self) -> float:
        """Returns the age of the process in seconds; answers while a long call runs."""
        return time.monotonic() - self._born

    def start(self) -> WorkerInfo:
        """Builds the plain class and returns where it runs."""
        self._build()
        try:
            stderr = str(Path("/proc/self/fd/2").readlink())
        except OSError:  # not Linux: no last words then
            stderr = ""
        node_id = ray.get_runtime_context().get_node_id()
        return WorkerInfo(pid=os.getpid(), host=platform.node(), node_id=node_id, stderr=stderr)

    def _build(self) -> None:
        raise NotImplementedError


class RolloutActor(BaseActor):
    """A rollout worker: tokens in by reference, one Arrow batch of scored groups out."""

    role = "rollout"

    def _build(self) -> None:
        self._worker = self._factories.rollout(self._config)

    def run(self, tasks: Sequence[RolloutTask]) -> pa.RecordBatch:
        """Returns the scored groups of a lease, in order, as one batch."""
        tokens = fetch_tokens([task.tokens for task in tasks], deadline_s=FETCH_DEADLINE_S)
        return groups_to_batch(self._worker.rollout(tasks, tokens))


class ReplayActor(BaseActor):
    """A replay worker: tokens in by reference, token gradients out by reference."""

    role = "replay"

    def _build(self) -> None:
        self._worker = self._factories.replay(self._config)

    def run(self, tasks: Sequence[ReplayTask]) -> tuple[Any, ...]:
        """Returns the coordinator's views of all tasks, then one payload per task.

        Payloads are return values, not puts: Ray makes the caller their owner, so they outlive this process.
        """
        opened = zip(tasks, _open_replay(tasks), strict=True)
        gradients = [self._worker.replay(task, tokens, behaviour) for task, (tokens, behaviour) in opened]
        views = [GradientHandle.of(record, LocalHandle(record.pair_id)) for record in gradients]
        return (views, *(pack_gradients(record) for record in gradients))

    def backbone_digest(self) -> str:
        """Returns the sha256 over the frozen backbone."""
        return self._worker.backbone_digest()


class LearnerActor(BaseActor):
    """The learner; with ``replay.workers = 0`` also the replay worker, whose gradients then never leave the process."""

    role = "learner"
    _learner: Learner
    _replay_worker: ReplayWorker | None = None

    def _build(self) -> None:
        self._gradients: dict[str, TokenGradients] = {}
        self._learner = self._make_learner(self._config)
        if self._config.needs_mllm and self._config.replay.workers == 0:
            self._replay_worker = self._factories.replay(self._config)

    def reset(self, config: RunConfig) -> None:
        """Puts a fresh learner for ``config`` in place; the replay worker holds only frozen weights and stays."""
        self._gradients.clear()
        self._learner = self._make_learner(config)

    def step(self) -> int:
        """Returns the optimizer steps done so far."""
        return self._learner.step

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of a split."""
        return self._learner.labels(split)

    def split_hash(self) -> str:
        """Returns the sha256 of the splits."""
        return self._learner.split_hash()

    def encode(self, batch: MicroBatch) -> EncodedBatch:
        """Encodes a micro-batch and publishes one payload per pair."""
        return self._publish(self._learner.encode(batch))

    def encode_no_grad(self, batch: MicroBatch) -> EncodedBatch:
        """Publishes the tokens of a later step's batch at today's version."""
        return self._publish(self._learner.encode_no_grad(batch))

    def encode_pairs(self, split: str, pairs: Sequence[ImagePair]) -> list[ObjectHandle]:
        """Returns token handles for evaluation pairs."""
        return [put_tokens(record) for record in self._learner.encode_pairs(split, pairs)]

    def replay(self, task: ReplayTask) -> GradientHandle:
        """Differentiates one group here and keeps its token gradients for ``finish_step``."""
        if self._replay_worker is None:
            raise TrainingError("asked to replay without a replay worker", where="learner")
        ((tokens, behaviour),) = _open_replay([task])
        gradients = self._replay_worker.replay(task, tokens, behaviour)
        self._gradients[gradients.pair_id] = gradients
        return GradientHandle.of(gradients, LocalHandle(gradients.pair_id))

    def finish_step(self, handles: Sequence[ObjectHandle | LocalHandle]) -> StepResult:
        """Opens the token gradients, in the order of ``handles``, and takes one optimizer step."""
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
        """Restores what ``save`` wrote."""
        self._gradients.clear()
        self._learner.load(folder)

    def save_encoder(self, folder: Path) -> None:
        """Writes the deployable encoder."""
        self._learner.save_encoder(folder)

    @staticmethod
    def _publish(encoded: EncodedBatch) -> EncodedBatch:
        return EncodedBatch(tuple(put_tokens(record) for record in encoded.handles), encoded.num_bytes)

    def backbone_digest(self) -> str:
        """Returns the sha256 over the frozen backbone ('' without one)."""
        return self._replay_worker.backbone_digest() if self._replay_worker else ""

    def _make_learner(self, config: RunConfig) -> Learner:
        return self._factories.learner(config)


def _open_replay(tasks: Sequence[ReplayTask]) -> list[tuple[EncoderTokens, EncoderTokens | None]]:
    """Today's tokens of each task, and the older ones where the task has them; fetched together."""
    older = [task.behaviour for task in tasks if task.behaviour is not None]
    records = fetch_tokens([task.tokens for task in tasks] + older, deadline_s=FETCH_DEADLINE_S)
    behaviours = iter(records[len(tasks) :])
    return [
        (record, None if task.behaviour is None else next(behaviours))
        for task, record in zip(tasks, records[: len(tasks)], strict=True)
    ]


def spawn(
    shell: type[BaseActor],
    config: RunConfig,
    factories: Factories,
    *,
    num_cpus: float,
    num_gpus: float,
    scheduling_strategy: Any = None,
) -> Any:
    """Returns the handle of a new actor; its process comes up in the background.

    Never restarted or retried by Ray: whoever holds the handle decides what happens to work that may have been done.
    """
    environment = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    if config.runtime.threads:  # read when torch is loaded, hence before the process starts
        environment |= {name: str(config.runtime.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    actor_class = ray.remote(concurrency_groups={"control": 1}, max_restarts=0, max_task_retries=0)(shell)
    options = actor_class.options(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        resources={shell.role: 1} if config.runtime.pin_roles and shell.role else None,
        scheduling_strategy=scheduling_strategy,
        runtime_env={"env_vars": environment},
    )
    return options.remote(config, factories, str(Path.cwd()))
