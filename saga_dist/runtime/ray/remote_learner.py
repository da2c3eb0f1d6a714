"""The learner in another process: every call has a deadline and is watched by heartbeats."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError

from saga_dist.config import RunConfig
from saga_dist.errors import DeadlineExceeded, LearnerLost, TrainingError, WorkerError
from saga_dist.protocols import Embeddings, EncodedBatch, GradientHandle
from saga_dist.runtime.ray.adapter import Timeouts
from saga_dist.runtime.ray.errors import WorkerInfo, to_saga_error
from saga_dist.types import ImagePair, MicroBatch, Quarantined, ReplayTask, StepResult

log = logging.getLogger(__name__)

RESUME = "the same command resumes from the last checkpoint"


class RemoteLearner:
    """A ``LearnerActor`` behind ``protocols.Learner``. One that dies or falls silent is lost; see ``restart``.

    The actor is created at once; ``wait_until_up`` waits for it.

    Args:
        spawn: returns the handle of a new actor.
        timeouts: longest time for its start, for one call, and for a busy learner to show that it lives.
        missing: says what the cluster lacks, for the error of a start that takes too long.
    """

    def __init__(self, spawn: Callable[[], Any], timeouts: Timeouts, missing: Callable[[], str]) -> None:
        self._spawn, self._timeouts, self._missing = spawn, timeouts, missing
        self.info: WorkerInfo | None = None
        """Where it runs; None until it is up."""
        self._labels: dict[str, np.ndarray] = {}
        self._start()

    def wait_until_up(self) -> None:
        """Returns when the actor has built its learner.

        Raises:
            DeadlineExceeded: it has not, in time.
            SagaError: what building it raised.
        """
        ready, _ = ray.wait([self._started], timeout=self._timeouts.start_s)
        if not ready:
            what = f"not started within {self._timeouts.start_s:g} s"
            raise DeadlineExceeded(what, where="learner", fix=self._missing())
        self.info = self._open(self._started)
        log.info("learner is up (pid %d)", self.info.pid)

    def restart(self) -> None:
        """Ends the process, hung or not, and returns when another one is up; raises what ``wait_until_up`` raises."""
        self.close()
        self.info = None
        self._labels.clear()
        self._start()
        self.wait_until_up()

    def close(self) -> None:
        """Ends the learner's process."""
        ray.kill(self._actor, no_restart=True)

    @property
    def step(self) -> int:
        """Optimizer steps done so far; also the encoder version."""
        return self.call("step")

    def labels(self, split: str) -> np.ndarray:
        """Returns the int64 [I] labels of a split, empty without such a split; asked for once per split and learner."""
        if split not in self._labels:
            self._labels[split] = np.array(self.call("labels", split))  # own memory, not the object store's
        return self._labels[split]

    def split_hash(self) -> str:
        """Returns the sha256 of which images, classes and labels the splits hold."""
        return self.call("split_hash")

    def encode(self, batch: MicroBatch) -> EncodedBatch:
        """Encodes a micro-batch; returns one handle per pair."""
        return self.call("encode", batch)

    def encode_no_grad(self, batch: MicroBatch) -> EncodedBatch:
        """Encodes a later step's micro-batch at today's version; returns one handle per pair."""
        return self.call("encode_no_grad", batch)

    def finish_step(self, handles: Sequence[Any]) -> StepResult:
        """Takes one optimizer step from the token gradients behind ``handles``."""
        return self.call("finish_step", list(handles))

    def embed(self, split: str, *, pretrained: bool = False) -> Embeddings:
        """Returns the embeddings of a split."""
        answer: Embeddings = self.call("embed", split, pretrained)
        # Own memory: the arrays look into the object store, which may go before they do.
        return replace(
            answer,
            values_IE=np.array(answer.values_IE),
            labels_I=np.array(answer.labels_I),
            attributes_IA=None if answer.attributes_IA is None else np.array(answer.attributes_IA),
        )

    def encode_pairs(self, split: str, pairs: Sequence[ImagePair]) -> list[Any]:
        """Returns token handles for evaluation pairs."""
        return self.call("encode_pairs", split, list(pairs))

    def save(self, folder: Path) -> None:
        """Writes the training state into an existing folder that the learner's node can see."""
        self.call("save", folder.resolve())

    def load(self, folder: Path) -> None:
        """Restores what ``save`` wrote."""
        self.call("load", folder.resolve())

    def save_encoder(self, folder: Path) -> None:
        """Writes the deployable encoder."""
        self.call("save_encoder", folder.resolve())

    def reset(self, config: RunConfig) -> None:
        """Builds a fresh learner for ``config`` in the same process."""
        self._labels.clear()
        self.call("reset", config)

    def call(self, method: str, *arguments: Any) -> Any:
        """Returns the answer of the actor's ``method``.

        Raises:
            LearnerLost: the learner died, fell silent or ran out of time.
            SagaError: whatever of ours the learner raised.
        """
        return self.wait(self.send(method, *arguments), method)

    def send(self, method: str, *arguments: Any) -> ray.ObjectRef:
        """Starts a call; its answer is taken with ``wait``."""
        return getattr(self._actor, method).remote(*arguments)

    def wait(self, ref: ray.ObjectRef, method: str, *, deadline_s: float | None = None) -> Any:
        """Returns the answer behind ``ref``; asks for a sign of life every half heartbeat while it waits."""
        deadline_s, heartbeat_s = deadline_s or self._timeouts.lease_s, self._timeouts.heartbeat_s
        deadline, reply, silent_at = time.monotonic() + deadline_s, None, 0.0
        while True:
            patience = min(heartbeat_s / 2, max(0.0, deadline - time.monotonic()))
            ready, _ = ray.wait([ref], timeout=patience)
            if ready:
                return self._open(ref)
            now = time.monotonic()
            if now >= deadline:
                raise self._end(f"{method} did not finish within {deadline_s:g} s")
            if reply is None or ray.wait([reply], timeout=0)[0]:
                reply, silent_at = self._actor.health.remote(), now + heartbeat_s
            elif now >= silent_at:
                raise self._end(f"no sign of life for {heartbeat_s:g} s during {method}")

    def _start(self) -> None:
        self._actor = self._spawn()
        self._started = self._actor.start.remote()

    def _open(self, ref: ray.ObjectRef) -> Any:
        try:
            return ray.get(ref, timeout=self._timeouts.lease_s)
        except RayActorError as error:
            death = to_saga_error(error, where="learner", info=self.info)
            raise LearnerLost(str(death), fix=RESUME) from error
        except RayError as error:
            raise to_saga_error(error, where="learner", info=self.info) from error

    def _end(self, what: str) -> LearnerLost:
        self.close()  # it would hold its GPU for ever
        return LearnerLost(what, where="learner", fix=RESUME)


class LearnerReplayPool:
    """Replay in the learner's process behind ``protocols.WorkerPool``: one group at a time, gradients stay there."""

    def __init__(self, learner: RemoteLearner, *, deadline_s: float) -> None:
        self._learner, self._deadline_s = learner, deadline_s
        self._queue: deque[ReplayTask] = deque()
        self._running: ray.ObjectRef | None = None
        self._busy_s = 0.0
        self._groups = 0

    def submit(self, tasks: Sequence[ReplayTask]) -> None:
        """Queues tasks; the first one starts at once."""
        self._queue.extend(tasks)
        self._send_next()

    def collect(self) -> list[GradientHandle | Quarantined]:
        """Returns the next group's handle, or an empty list when nothing is pending."""
        if self._running is None:
            return []
        started = time.monotonic()
        running, self._running = self._running, None
        try:
            handle = self._learner.wait(running, "replay", deadline_s=self._deadline_s)
        except WorkerError as error:
            self._queue.clear()
            raise TrainingError(str(error), fix=RESUME) from error
        self._busy_s, self._groups = self._busy_s + time.monotonic() - started, self._groups + 1
        self._send_next()
        return [handle]

    def poll(self) -> list[GradientHandle | Quarantined]:
        """Returns the next group's handle if it is there, else an empty list; never waits."""
        if self._running is None or not ray.wait([self._running], timeout=0)[0]:
            return []
        return self.collect()

    @property
    def num_pending(self) -> int:
        """Tasks submitted and not yet collected."""
        return len(self._queue) + (self._running is not None)

    def metrics(self) -> dict[str, float]:
        """Returns groups and seconds since the last call."""
        metrics = {"leases": float(self._groups), "busy_s": self._busy_s}
        self._groups, self._busy_s = 0, 0.0
        return metrics

    def forget(self) -> None:
        """Drops queued tasks and the answer of the running one."""
        self._queue.clear()
        self._running = None

    def close(self) -> None:
        """Forgets queued tasks."""
        self.forget()

    def _send_next(self) -> None:
        if self._running is None and self._queue:
            self._running = self._learner.send("replay", self._queue.popleft())
