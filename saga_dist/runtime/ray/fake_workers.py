"""Fake learner and workers without a model, which take milliseconds per group and fail on demand, for tests.

They implement ``protocols`` as deterministic functions of pairs and encoder version, so that the results of two
runtimes can be compared number by number. A fault is triggered when its pair is processed, as many times as planned.
Plans and counts are files, because a fault may kill the process in which it happens.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from saga_dist.config import RunConfig
from saga_dist.errors import EngineError, TokenError
from saga_dist.protocols import Embeddings, EncodedBatch
from saga_dist.runtime.ray.actors import Factories
from saga_dist.types import (
    Completions,
    EncoderTokens,
    GradientTask,
    ImagePair,
    LogProbMismatch,
    MicroBatch,
    RolloutTask,
    ScoredGroup,
    StepResult,
    TokenGradients,
    VerdictTask,
)
from saga_dist.utils.output_files import make_folder, write_file
from saga_dist.utils.rng import counter_generator
from saga_dist.workers.data_parallel import ALONE, Ranks

TOKENS_PER_IMAGE, WIDTH = 4, 6
"""Tokens of each fake image, and width of a token with its one DeepStack level."""
Kind = Literal["kill", "stop", "raise", "bug", "user_error", "short", "garbage", "twice", "slow"]
"""Kind of a fault.

``kill`` and ``stop`` send SIGKILL and SIGSTOP to the own process; ``raise`` raises an EngineError, ``bug`` a
ZeroDivisionError, ``user_error`` a TokenError; ``slow`` sleeps; ``short`` leaves the group out of the results,
``garbage`` replaces its pair id, ``twice`` returns it twice.
"""


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Planned faults, as files of a folder that is read for every pair, so that a fault can be planned at any time."""

    folder: str = ""
    """Path of the folder; empty for no faults."""
    group_s: float = 0.0
    """Time that a rollout worker takes for each group, seconds."""

    def plan(self, name: str, kind: Kind, *, times: int = 1, seconds: float = 0.0) -> None:
        """Plans a fault.

        Args:
            name: point at which the fault is triggered: a pair id for its rollout, ``start`` for the construction of a
                rollout worker, ``replay-<pair id>`` for a replay, ``encode-<step>`` for the learner's encode.
            kind: kind of the fault.
            times: number of times that it is triggered, over all processes.
            seconds: duration of a fault of kind ``slow``.
        """
        write_file(Path(self.folder) / f"{name}.json", json.dumps([kind, times, seconds]))

    def num_triggered(self, name: str) -> int:
        """Returns how often the fault at ``name`` was triggered."""
        return len(list(Path(self.folder).glob(f"{name}.triggered.*")))

    def triggered_at(self, name: str) -> list[float]:
        """Returns the times at which the fault at ``name`` was triggered, seconds since 1970."""
        return sorted(file.stat().st_mtime for file in Path(self.folder).glob(f"{name}.triggered.*"))

    def clear(self) -> None:
        """Deletes all plans and counts."""
        for file in Path(self.folder).iterdir():
            file.unlink()

    def trigger(self, name: str) -> str:
        """Triggers the fault at ``name`` if one is planned; returns its kind for the caller to apply, else empty."""
        plan = Path(self.folder) / f"{name}.json"
        if not self.folder or not plan.exists():
            return ""
        kind, times, seconds = json.loads(plan.read_text("utf-8"))
        if not self._claim(name, times):
            return ""
        match kind:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "raise":
                raise EngineError("CUDA out of memory (scripted)", where="engine")
            case "bug":
                raise ZeroDivisionError("scripted bug")
            case "user_error":
                raise TokenError("width 7", where=f"pair {name}", expected="width 6")
            case "slow":
                time.sleep(seconds)
        return kind

    def _claim(self, name: str, times: int) -> bool:
        """Returns True for the first ``times`` calls over all processes, because a file is created atomically."""
        for count in range(times):
            try:
                (Path(self.folder) / f"{name}.triggered.{count}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False


class FakeRolloutWorker:
    """Rollout worker whose groups are a function of pair and tokens; implements ``protocols.RolloutWorker``.

    Args:
        config: not used.
        script: planned faults.
    """

    def __init__(self, config: RunConfig, script: FaultPlan) -> None:
        self._script = script
        script.trigger("start")

    def rollout(self, tasks: Sequence[RolloutTask], tokens: Sequence[EncoderTokens]) -> list[ScoredGroup]:
        """Returns one contributing group per task, unless a fault changes the results."""
        groups = []
        for task, record in zip(tasks, tokens, strict=True):
            time.sleep(self._script.group_s)
            kind = self._script.trigger(task.pair.pair_id)
            group = fake_group(task, record)
            if kind == "short":
                continue
            if kind == "garbage":
                other_pair = replace(task.pair, pair_id="stranger")
                group = replace(
                    group, pair=other_pair, completions=replace(group.completions, pair_id=other_pair.pair_id)
                )
            groups += [group, group] if kind == "twice" else [group]
        return groups

    def close(self) -> None:
        """Does nothing, because there is no engine."""


class FakeReplayWorker:
    """Replay worker whose gradients are proportional to the tokens; implements ``protocols.ReplayWorker``.

    Args:
        config: not used.
        script: planned faults.
    """

    def __init__(self, config: RunConfig, script: FaultPlan) -> None:
        self._script = script

    def replay(
        self, task: GradientTask, tokens: EncoderTokens, behaviour: EncoderTokens | None = None
    ) -> TokenGradients:
        """Returns 0.01 * tokens / |T| (pairs, for a verdict) as the gradient, and uniform attention targets."""
        if isinstance(task, VerdictTask):
            total, num_tokens = task.num_pairs_total, 2
        else:
            total, num_tokens = task.num_tokens_total, task.group.num_tokens
        self._script.trigger(f"replay-{tokens.pair_id}")
        attention_N = torch.full((TOKENS_PER_IMAGE,), 1.0 / TOKENS_PER_IMAGE)
        return TokenGradients(
            pair_id=tokens.pair_id,
            values_NW=0.01 * tokens.values_NW.float() / total,
            attention_a_N=attention_N,
            attention_b_N=attention_N,
            negative_entropy=-1.0,
            num_attended=1,
            loss=float(tokens.values_NW.sum()) / total,
            num_tokens=num_tokens,
            mismatch=LogProbMismatch(log_prob_gap=0.0, mismatch_kl=0.0),
            encoder_version=tokens.encoder_version,
        )

    def backbone_digest(self) -> str:
        """Returns a constant, because there is no backbone."""
        return "scripted"


class FakeLearner:
    """Learner with one weight vector, which token gradients change; implements ``protocols.Learner``.

    Args:
        config: not used.
        script: planned faults.
        ranks: data-parallel ranks as seen from this process.
    """

    def __init__(self, config: RunConfig, script: FaultPlan, ranks: Ranks = ALONE) -> None:
        self._script, self._ranks = script, ranks
        self._weights_W = torch.zeros(WIDTH)
        self._step = 0

    @property
    def step(self) -> int:
        """Number of optimizer steps done."""
        return self._step

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of the eight embeddings of ``embed``, two per class."""
        return np.arange(8, dtype=np.int64) // 2

    def split_hash(self) -> str:
        """Returns a constant, because there is no data set."""
        return "scripted"

    def tower_digest(self) -> str:
        """Returns a constant, because there is no tower."""
        return "scripted"

    def encode(self, batch: MicroBatch) -> EncodedBatch:
        """Returns tokens that depend on images and weights only; every rank computes its share of the pairs."""
        self._script.trigger(f"encode-{batch.step}")
        return self.encode_no_grad(batch)

    def encode_no_grad(self, batch: MicroBatch) -> EncodedBatch:
        """Returns the tokens of ``encode``."""
        records = [self._tokens(pair) for pair in batch.pairs]
        own = records[self._ranks.share(len(records))]
        values_NW = self._ranks.gather_rows(torch.cat([record.values_NW for record in own]))
        shared = zip(records, values_NW.split(2 * TOKENS_PER_IMAGE), strict=True)
        published = tuple(replace(record, values_NW=values) for record, values in shared)
        return EncodedBatch(published, num_bytes=sum(record.values_NW.nbytes for record in published))

    def expect(self, batches: Sequence[MicroBatch]) -> None:
        """Does nothing, because there are no images."""

    def encode_pairs(self, split: str, pairs: Sequence[ImagePair]) -> list[EncoderTokens]:
        """Returns the tokens of evaluation pairs."""
        return [self._tokens(pair) for pair in pairs]

    def finish_step(self, handles: Sequence[TokenGradients]) -> StepResult:
        """Takes one step of gradient descent with learning rate 1."""
        for gradients in handles:
            self._weights_W -= gradients.values_NW.sum(0)
        self._step += 1
        return StepResult(
            self._step, {"weights/norm": float(self._weights_W.norm()), "step/groups": float(len(handles))}
        )

    def embed(self, split: str, *, pretrained: bool = False) -> Embeddings:
        """Returns eight orthogonal unit vectors."""
        return Embeddings(np.eye(8, dtype=np.float32), self.labels(split))

    def save(self, folder: Path) -> None:
        """Writes weights and step."""
        write_file(folder / "learner.json", json.dumps([self._step, self._weights_W.tolist()]))

    def load(self, folder: Path) -> None:
        """Restores weights and step."""
        self._step, weights = json.loads((folder / "learner.json").read_text("utf-8"))
        self._weights_W = torch.tensor(weights)

    def save_encoder(self, folder: Path) -> None:
        """Writes the weights."""
        make_folder(folder)
        self.save(folder)

    def _tokens(self, pair: ImagePair) -> EncoderTokens:
        images = [
            torch.from_numpy(counter_generator("image", image).standard_normal((TOKENS_PER_IMAGE, WIDTH)))
            for image in (pair.image_a, pair.image_b)
        ]
        return EncoderTokens(
            pair_id=pair.pair_id,
            values_NW=torch.cat(images).float() + self._weights_W,
            lengths=(TOKENS_PER_IMAGE, TOKENS_PER_IMAGE),
            grids=((1, 4, 4), (1, 4, 4)),
            num_deepstack=1,
            encoder_version=self._step,
        )


def fake_factories(script: FaultPlan | None = None) -> Factories:
    """Returns factories of fake learners and workers for ``RayRuntime``.

    Args:
        script: planned faults; None for none.
    """
    script = script or FaultPlan()
    return Factories(
        learner=partial(FakeLearner, script=script),
        rollout=partial(FakeRolloutWorker, script=script),
        replay=partial(FakeReplayWorker, script=script),
    )


def fake_group(task: RolloutTask, tokens: EncoderTokens, *, contributes: bool = True) -> ScoredGroup:
    """Returns a group whose texts contain the pair id, and whose log-probabilities depend on the mean of the tokens.

    Args:
        task: pair and sampling parameters.
        tokens: tokens of the pair.
        contributes: True for alternating rewards; False for rewards that are all 0.
    """
    num = task.sampling.num_completions
    level = float(tokens.values_NW.float().mean())
    lengths = [3 + index % 2 for index in range(num)]
    completions = Completions(
        pair_id=task.pair.pair_id,
        token_ids=tuple(tuple(range(length)) for length in lengths),
        texts=tuple(f"{task.pair.pair_id} says {index}" for index in range(num)),
        log_probs=tuple(np.full(length, -abs(level), np.float32) for length in lengths),
        finish_reasons=("stop",) * num,
        sampling=task.sampling,
        encoder_version=tokens.encoder_version,
    )
    rewards_G = np.arange(num, dtype=np.float32) % 2 * contributes
    return ScoredGroup(
        pair=task.pair,
        completions=completions,
        verdicts=tuple(bool(reward) == task.pair.same for reward in rewards_G),
        rewards_G=rewards_G,
        is_correct_G=rewards_G == 1,
        advantages_G=(rewards_G * 2 - 1) * contributes,
        describes_a=tuple(np.arange(length) == 0 for length in lengths),
        describes_b=tuple(np.arange(length) == 1 for length in lengths),
    )
