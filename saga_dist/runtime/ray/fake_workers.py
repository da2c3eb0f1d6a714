"""Fake learner and workers without a model, which take milliseconds per group and fail on demand, for tests.

They implement ``protocols`` as deterministic functions of pairs and encoder version, so that the results of two
runtimes can be compared number by number. A planned fault (``fault_plan``) is triggered when its pair is processed, as
many times as planned.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from saga_dist.config import RunConfig
from saga_dist.protocols import Embeddings, EncodedBatch
from saga_dist.runtime.ray.actors import Factories
from saga_dist.runtime.ray.fault_plan import FaultPlan
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
TICK_S = 0.01
"""Time of one step of a fake engine, seconds."""


@dataclass(frozen=True, slots=True)
class _OpenGroup:
    """A group in flight."""

    task: RolloutTask
    """Its task."""
    tokens: EncoderTokens
    """Encoder tokens of the pair."""
    ends_at: float
    """Time of ``time.monotonic`` at which it is finished."""


class FakeRolloutWorker:
    """Rollout worker whose groups are a function of pair and tokens; implements ``protocols.RolloutWorker``.

    Args:
        config: not used.
        script: planned faults.
    """

    can_be_fed = True
    """True, as with an engine that groups can join and leave."""

    def __init__(self, config: RunConfig, script: FaultPlan) -> None:
        self._script = script
        self._open: dict[str, _OpenGroup] = {}
        script.trigger("start")

    def rollout(self, tasks: Sequence[RolloutTask], tokens: Sequence[EncoderTokens]) -> list[ScoredGroup]:
        """Returns one contributing group per task, unless a fault changes the results."""
        groups = []
        for task, record in zip(tasks, tokens, strict=True):
            time.sleep(self._script.seconds_of(task.pair_id))
            groups += self._groups(task, record)
        return groups

    @property
    def in_flight(self) -> tuple[str, ...]:
        """Ids of the pairs that ``advance`` has neither returned nor cancelled."""
        return tuple(self._open)

    def advance(
        self,
        tasks: Sequence[RolloutTask],
        tokens: Sequence[EncoderTokens],
        *,
        cancelled: Collection[str],
        interrupted: Callable[[], bool],
    ) -> list[ScoredGroup]:
        """Returns the first group whose time is over, unless a fault changes it; groups take their time in parallel."""
        for pair_id in cancelled:
            self._open.pop(pair_id, None)
        for task, record in zip(tasks, tokens, strict=True):
            self._open[task.pair_id] = _OpenGroup(
                task, record, time.monotonic() + self._script.seconds_of(task.pair_id)
            )
        while self._open:
            now = time.monotonic()
            for pair_id, group in self._open.items():
                if now >= group.ends_at:
                    del self._open[pair_id]
                    return self._groups(group.task, group.tokens)
            if interrupted():
                break
            time.sleep(TICK_S)
        return []

    def _groups(self, task: RolloutTask, tokens: EncoderTokens) -> list[ScoredGroup]:
        """Returns the group of a task, or what a fault makes of it."""
        kind = self._script.trigger(task.pair_id)
        group = fake_group(task, tokens)
        if kind == "short":
            return []
        if kind == "garbage":
            other_pair = replace(task.pair, pair_id="stranger")
            group = replace(group, pair=other_pair, completions=replace(group.completions, pair_id=other_pair.pair_id))
        return [group, group] if kind == "twice" else [group]

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

    def training_images(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Returns grey images of one pixel."""
        return [np.full((1, 1, 3), 128, np.uint8) for _ in indices]

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
