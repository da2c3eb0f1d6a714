"""The learner in another process; every call has a deadline, and heartbeats detect a dead or hanging process."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError

from saga_dist.config import RunConfig
from saga_dist.errors import DeadlineExceeded, Interrupted, LearnerLost, TrainingError, WorkerError
from saga_dist.protocols import Embeddings, EncodedBatch, GradientHandle
from saga_dist.runtime.ray.adapter import STILL_LOADING, Timeouts
from saga_dist.runtime.ray.errors import WorkerInfo, to_saga_error
from saga_dist.runtime.stopping import StopRequest
from saga_dist.types import GradientTask, ImagePair, MicroBatch, Quarantined, StepResult

log = logging.getLogger(__name__)

RESUME = "the same command resumes from the last checkpoint"
"""Advice of errors after which the run ends."""
SLICE_S = 1.0
"""Longest time between two checks for a request to stop, seconds."""


class RemoteLearner:
    """Client of a ``LearnerActor``; implements ``protocols.Learner``.

    The constructor creates the actor, and ``wait_until_up`` waits until it has built its learner. When the actor dies,
    misses a heartbeat or a deadline, calls raise ``LearnerLost``; ``restart`` creates another one.

    Args:
        spawn: returns the handle of a new actor.
        timeouts: deadlines of the start, of a call and of a heartbeat.
        missing: returns the resources that the cluster lacks, for the error of a start that takes too long.
        kill: kills an actor's process.
        stop: request to stop, which ends every wait before the first step.
    """

    def __init__(
        self,
        spawn: Callable[[], Any],
        timeouts: Timeouts,
        missing: Callable[[], str],
        *,
        kill: Callable[[Any], None],
        stop: StopRequest,
    ) -> None:
        self._spawn, self._timeouts, self._missing, self._kill_actor = spawn, timeouts, missing, kill
        self._stop = stop
        self.info: WorkerInfo | None = None
        """Node and process of the learner; None until it is up."""
        self._labels: dict[str, np.ndarray] = {}
        self._start()

    def wait_until_up(self) -> None:
        """Waits until the actor has built its learner.

        Raises:
            DeadlineExceeded: the learner was not built in time.
            Interrupted: a stop was requested meanwhile; there is no learner whose state could be saved.
            SagaError: building the learner raised it.
        """
        deadline = time.monotonic() + self._timeouts.start_s
        while not (ready := self._ready(self._started, SLICE_S)) and time.monotonic() < deadline:
            if self._stop():
                raise Interrupted("stopped while a learner was starting", fix=RESUME)
        if not ready:
            what = f"not started within {self._timeouts.start_s:g} s"
            raise DeadlineExceeded(what, where="learner", fix=self._missing() or STILL_LOADING)
        self.info = self._open(self._started)
        log.info("learner is up (pid %d)", self.info.pid)

    def restart(self) -> None:
        """Kills the process, creates another one and waits until it is up; raises the errors of ``wait_until_up``."""
        self.close()
        self.info = None
        self._labels.clear()
        self._start()
        self.wait_until_up()

    def close(self) -> None:
        """Kills the learner's process; it holds nothing that a kill would leave behind."""
        self._kill_actor(self._actor)

    @property
    def step(self) -> int:
        """Number of optimizer steps done; also the encoder version."""
        return self.call("step")

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of a split, int64 [I], empty without such a split; fetched once per learner and kept."""
        if split not in self._labels:
            self._labels[split] = np.array(self.call("labels", split))  # a copy, which does not use the object store
        return self._labels[split]

    def training_images(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Returns training images before augmentation; copies, which do not use the object store."""
        return [np.array(image) for image in self.call("training_images", list(indices))]

    def split_hash(self) -> str:
        """Returns the sha256 of the images, classes and labels of all splits."""
        return self.call("split_hash")

    def tower_digest(self) -> str:
        """Returns the sha256 of the tower's present weights."""
        return self.call("tower_digest")

    def encode(self, batch: MicroBatch) -> EncodedBatch:
        """Encodes a micro-batch and back-propagates the metric loss; returns one token handle per pair."""
        return self.call("encode", batch)

    def encode_no_grad(self, batch: MicroBatch) -> EncodedBatch:
        """Encodes a later micro-batch with the present encoder; returns one token handle per pair."""
        return self.call("encode_no_grad", batch)

    def expect(self, batches: Sequence[MicroBatch]) -> None:
        """Tells the learner which micro-batches come next; the answer is not waited for."""
        self.send("expect", list(batches))

    def finish_step(self, handles: Sequence[Any]) -> StepResult:
        """Takes one optimizer step with the token gradients behind ``handles``."""
        return self.call("finish_step", list(handles))

    def embed(self, split: str, *, pretrained: bool = False) -> Embeddings:
        """Returns the embeddings of a split."""
        answer: Embeddings = self.call("embed", split, pretrained)
        # Copies, because the arrays are views of the object store, which may be closed before they are released.
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
        """Writes the training state into an existing folder, to which the learner's node has access."""
        self.call("save", folder.resolve())

    def load(self, folder: Path) -> None:
        """Restores the training state that ``save`` wrote."""
        self.call("load", folder.resolve())

    def save_encoder(self, folder: Path) -> None:
        """Writes the deployable encoder, into a folder to which the learner's node has access."""
        self.call("save_encoder", folder.resolve())

    def reset(self, config: RunConfig) -> None:
        """Builds a new learner for ``config`` in the same process."""
        self._labels.clear()
        self.call("reset", config)

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the actor and returns its result.

        Args:
            method: name of the method.
            arguments: its arguments.

        Raises:
            LearnerLost: the learner died, missed a heartbeat or the deadline.
            SagaError: the method raised it.
        """
        return self.wait(self.send(method, *arguments), method)

    def send(self, method: str, *arguments: Any) -> ray.ObjectRef:
        """Starts a call of a method of the actor; returns the reference of its result, for ``wait``."""
        return getattr(self._actor, method).remote(*arguments)

    def wait(self, ref: ray.ObjectRef, method: str, *, deadline_s: float | None = None) -> Any:
        """Waits for the result of a call and returns it; calls ``health`` every half heartbeat meanwhile.

        Args:
            ref: reference that ``send`` returned.
            method: name of the method, for error messages.
            deadline_s: longest time to wait, seconds; None: the deadline of ``timeouts``.

        Raises:
            LearnerLost: the learner died, missed a heartbeat or the deadline.
            SagaError: the method raised it.
        """
        deadline_s, heartbeat_s = deadline_s or self._timeouts.lease_s, self._timeouts.heartbeat_s
        deadline, heartbeat, lost_at = time.monotonic() + deadline_s, None, 0.0
        while True:
            wait_s = min(heartbeat_s / 2, max(0.0, deadline - time.monotonic()))
            if self._ready(ref, wait_s):
                return self._open(ref)
            now = time.monotonic()
            if now >= deadline:
                raise self._kill(f"{method} did not finish within {deadline_s:g} s")
            if heartbeat is None or ray.wait([heartbeat], timeout=0)[0]:
                heartbeat, lost_at = self._actor.health.remote(), now + heartbeat_s
            elif now >= lost_at:
                raise self._kill(f"no heartbeat for {heartbeat_s:g} s during {method}")

    def _ready(self, ref: ray.ObjectRef, timeout_s: float) -> bool:
        """Waits for a result for at most ``timeout_s`` seconds; returns True when it is there.

        Raises:
            StartAborted: a stop was requested before the first step.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            with self._stop.deferred():  # Ray drops exceptions of signal handlers
                ready, _ = ray.wait([ref], timeout=min(SLICE_S, left_s))
            self._stop.check()
            if ready or left_s <= SLICE_S:
                return bool(ready)

    def _start(self) -> None:
        self._actor = self._spawn()
        self._started = self._actor.start.remote()

    def _open(self, ref: ray.ObjectRef) -> Any:
        try:
            with self._stop.deferred():
                return ray.get(ref, timeout=self._timeouts.lease_s)
        except RayActorError as error:
            death = to_saga_error(error, where="learner", info=self.info)
            raise LearnerLost(str(death), fix=RESUME) from error
        except RayError as error:
            raise to_saga_error(error, where="learner", info=self.info) from error

    def _kill(self, what: str) -> LearnerLost:
        """Kills the process, which would keep its GPU otherwise, and returns the error to raise."""
        self.close()
        return LearnerLost(what, where="learner", fix=RESUME)


class LearnerReplayPool:
    """Pool for replay in the learner's process; implements ``protocols.WorkerPool``.

    Groups are replayed one at a time, and their token gradients stay in the learner's process.

    Args:
        learner: the learner, whose actor has a replay worker.
        deadline_s: longest time for the replay of one group, seconds.
    """

    def __init__(self, learner: RemoteLearner, *, deadline_s: float) -> None:
        self._learner, self._deadline_s = learner, deadline_s
        self._queue: deque[GradientTask] = deque()
        self._running: ray.ObjectRef | None = None
        self._running_pair = ""
        """Pair id of the running task; not used while none is running."""
        self._busy_s = 0.0
        self._groups = 0

    def submit(self, tasks: Sequence[GradientTask]) -> None:
        """Queues tasks and starts the first one, unless one is running."""
        self._queue.extend(tasks)
        self._send_next()

    def collect(self) -> list[GradientHandle | Quarantined]:
        """Waits for the next group and returns its gradient handle; returns an empty list when nothing is pending.

        Raises:
            LearnerLost: the learner was lost.
            TrainingError: the replay of the group failed.
        """
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
        """Returns the next group's gradient handle if it is finished, else an empty list; does not wait."""
        if self._running is None or not ray.wait([self._running], timeout=0)[0]:
            return []
        return self.collect()

    @property
    def num_pending(self) -> int:
        """Number of tasks that were submitted and whose results were not collected."""
        return len(self._queue) + (self._running is not None)

    @property
    def runs_in_background(self) -> bool:
        """True, because the learner's process works while the caller does something else."""
        return True

    def metrics(self) -> dict[str, float]:
        """Returns the number of groups and the seconds spent waiting for them since the last call."""
        metrics = {"leases": float(self._groups), "busy_s": self._busy_s}
        self._groups, self._busy_s = 0, 0.0
        return metrics

    def cancel(self, pair_ids: Collection[str]) -> None:
        """Drops the queued tasks of these pairs, and the result of the running one if it is theirs."""
        kept = [task for task in self._queue if task.pair_id not in pair_ids]
        self._queue = deque(kept)
        if self._running_pair in pair_ids:
            self._running = None
            self._send_next()

    def forget(self) -> None:
        """Drops queued tasks and the result of the running one."""
        self._queue.clear()
        self._running = None

    def close(self) -> None:
        """Drops all tasks; the learner's process is closed by its owner."""
        self.forget()

    def _send_next(self) -> None:
        if self._running is None and self._queue:
            task = self._queue.popleft()
            self._running, self._running_pair = self._learner.send("replay", task), task.pair_id
