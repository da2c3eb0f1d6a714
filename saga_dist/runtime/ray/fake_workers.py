"""Scripted workers: no model, milliseconds per group, faults on demand. For tests, dry runs, chaos drills.

They are plain classes behind ``protocols``, deterministic functions of pairs and encoder version, so that two runtimes
can be compared number by number. A fault strikes when its pair comes up, as many times as planned; plans and counts are
files, because the process that a fault happens in may not survive it.
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
    ImagePair,
    LogProbMismatch,
    MicroBatch,
    ReplayTask,
    RolloutTask,
    ScoredGroup,
    StepResult,
    TokenGradients,
)
from saga_dist.utils.rng import counter_generator
from saga_dist.workers.data_parallel import ALONE, Ranks

TOKENS_PER_IMAGE, WIDTH = 4, 6
Kind = Literal["kill", "stop", "raise", "bug", "user_error", "short", "garbage", "twice", "slow"]


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """A folder of planned faults, read whenever a pair comes up: plans can be made while workers run."""

    folder: str = ""
    """Empty: nothing ever goes wrong."""
    group_s: float = 0.0
    """Seconds that a rollout worker takes for each group."""

    def plan(self, name: str, kind: Kind, *, times: int = 1, seconds: float = 0.0) -> None:
        """Plans a fault.

        Args:
            name: pair id; ``start`` strikes when a rollout worker is built, ``replay-<pair id>`` at replay,
                ``encode-<step>`` in the learner.
            kind: what happens.
            times: how often, over all processes.
            seconds: how long a ``slow`` one takes.
        """
        (Path(self.folder) / f"{name}.json").write_text(json.dumps([kind, times, seconds]), "utf-8")

    def num_triggered(self, name: str) -> int:
        """Returns how often the fault of ``name`` has struck."""
        return len(list(Path(self.folder).glob(f"{name}.struck.*")))

    def triggered_at(self, name: str) -> list[float]:
        """Returns when (seconds since 1970) the fault of ``name`` has struck."""
        return sorted(file.stat().st_mtime for file in Path(self.folder).glob(f"{name}.struck.*"))

    def clear(self) -> None:
        """Drops all plans and counts."""
        for file in Path(self.folder).iterdir():
            file.unlink()

    def trigger(self, name: str) -> str:
        """Lets the fault of ``name`` happen if it is due; returns its kind if the caller must act it out, else ''."""
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
        """True for the first ``times`` calls, in whatever process: creating a file is atomic."""
        for count in range(times):
            try:
                (Path(self.folder) / f"{name}.struck.{count}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False


class FakeRolloutWorker:
    """Groups as a function of pair and tokens; implements ``protocols.RolloutWorker``."""

    def __init__(self, config: RunConfig, script: FaultPlan) -> None:
        self._script = script
        script.trigger("start")

    def rollout(self, tasks: Sequence[RolloutTask], tokens: Sequence[EncoderTokens]) -> list[ScoredGroup]:
        """Returns one group per task, rewards alternating so that it contributes."""
        groups = []
        for task, record in zip(tasks, tokens, strict=True):
            time.sleep(self._script.group_s)
            kind = self._script.trigger(task.pair.pair_id)
            group = fake_group(task, record)
            if kind == "short":
                continue
            if kind == "garbage":
                stranger, drawn = replace(task.pair, pair_id="stranger"), replace(group.completions, pair_id="stranger")
                group = replace(group, pair=stranger, completions=drawn)
            groups += [group, group] if kind == "twice" else [group]
        return groups

    def close(self) -> None:
        """Nothing to free."""


class FakeReplayWorker:
    """Token gradients proportional to the tokens; implements ``protocols.ReplayWorker``."""

    def __init__(self, config: RunConfig, script: FaultPlan) -> None:
        self._script = script

    def replay(self, task: ReplayTask, tokens: EncoderTokens, behaviour: EncoderTokens | None = None) -> TokenGradients:
        """Returns 0.01 * tokens, divided by the denominator."""
        self._script.trigger(f"replay-{tokens.pair_id}")
        attention_N = torch.full((TOKENS_PER_IMAGE,), 1.0 / TOKENS_PER_IMAGE)
        return TokenGradients(
            pair_id=tokens.pair_id,
            values_NW=0.01 * tokens.values_NW.float() / task.num_tokens_total,
            attention_a_N=attention_N,
            attention_b_N=attention_N,
            negative_entropy=-1.0,
            num_attended=1,
            loss=float(tokens.values_NW.sum()) / task.num_tokens_total,
            num_tokens=task.group.num_tokens,
            mismatch=LogProbMismatch(log_prob_gap=0.0, mismatch_kl=0.0),
            encoder_version=tokens.encoder_version,
        )

    def backbone_digest(self) -> str:
        """Returns the digest of a backbone that is not there."""
        return "scripted"


class FakeLearner:
    """One weight vector, moved by the token gradients; implements ``protocols.Learner``, with several ranks too."""

    def __init__(self, config: RunConfig, script: FaultPlan, ranks: Ranks = ALONE) -> None:
        self._script, self._ranks = script, ranks
        self._weights_W = torch.zeros(WIDTH)
        self._step = 0

    @property
    def step(self) -> int:
        """Steps done."""
        return self._step

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of ``embed``."""
        return np.arange(8, dtype=np.int64) // 2

    def split_hash(self) -> str:
        """Returns a constant: there is one made-up data set."""
        return "scripted"

    def encode(self, batch: MicroBatch) -> EncodedBatch:
        """Returns tokens that depend on images, weights and nothing else; every rank makes its share of the pairs."""
        self._script.trigger(f"encode-{batch.step}")
        return self.encode_no_grad(batch)

    def encode_no_grad(self, batch: MicroBatch) -> EncodedBatch:
        """Returns the same tokens: nothing is kept for a backward."""
        records = [self._tokens(pair) for pair in batch.pairs]
        own = records[self._ranks.share(len(records))]
        values_NW = self._ranks.gather_rows(torch.cat([record.values_NW for record in own]))
        shared = zip(records, values_NW.split(2 * TOKENS_PER_IMAGE), strict=True)
        published = tuple(replace(record, values_NW=values) for record, values in shared)
        return EncodedBatch(published, num_bytes=sum(record.values_NW.nbytes for record in published))

    def encode_pairs(self, split: str, pairs: Sequence[ImagePair]) -> list[EncoderTokens]:
        """Returns tokens of evaluation pairs."""
        return [self._tokens(pair) for pair in pairs]

    def finish_step(self, handles: Sequence[TokenGradients]) -> StepResult:
        """Takes one step of plain gradient descent."""
        for gradients in handles:
            self._weights_W -= gradients.values_NW.sum(0)
        self._step += 1
        return StepResult(
            self._step, {"weights/norm": float(self._weights_W.norm()), "step/groups": float(len(handles))}
        )

    def embed(self, split: str, *, pretrained: bool = False) -> Embeddings:
        """Returns eight unit vectors."""
        return Embeddings(np.eye(8, dtype=np.float32), self.labels(split))

    def save(self, folder: Path) -> None:
        """Writes weights and step."""
        (folder / "learner.json").write_text(json.dumps([self._step, self._weights_W.tolist()]), "utf-8")

    def load(self, folder: Path) -> None:
        """Restores them."""
        self._step, weights = json.loads((folder / "learner.json").read_text("utf-8"))
        self._weights_W = torch.tensor(weights)

    def save_encoder(self, folder: Path) -> None:
        """Writes the weights."""
        folder.mkdir(parents=True, exist_ok=True)
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
    """Returns factories of scripted workers for ``RayRuntime``."""
    script = script or FaultPlan()
    return Factories(
        learner=partial(FakeLearner, script=script),
        rollout=partial(FakeRolloutWorker, script=script),
        replay=partial(FakeReplayWorker, script=script),
    )


def fake_group(task: RolloutTask, tokens: EncoderTokens) -> ScoredGroup:
    """Returns a contributing group whose texts name the pair and whose ids and log-probs come from its tokens."""
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
    rewards_G = np.arange(num, dtype=np.float32) % 2
    return ScoredGroup(
        pair=task.pair,
        completions=completions,
        verdicts=tuple(bool(reward) == task.pair.same for reward in rewards_G),
        rewards_G=rewards_G,
        is_correct_G=rewards_G == 1,
        advantages_G=rewards_G * 2 - 1,
        describes_a=tuple(np.arange(length) == 0 for length in lengths),
        describes_b=tuple(np.arange(length) == 1 for length in lengths),
    )
