"""Rollouts compared with Hugging Face ``generate`` on whole batches: images in, G completions per pair out.

Both sides start from the same pixels, with the same prompt, temperature and top-p. The alternative gets the whole batch
at once and does not return log-probabilities, which saga_dist does. Greedy completions of both must be the same tokens.

There are two further measurements: the size of a group's tokens on the wire (they are sent once for any number of
completions), and the share of the text before the images that vLLM's prefix cache holds from an earlier pair, for
prompts that begin with the text.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saga_dist.bench.common import (
    BenchRow,
    Report,
    Size,
    Timing,
    in_turns,
    less_is_better,
    more_is_better,
    one_thread,
    random_model,
)
from saga_dist.bench.inputs import BenchInputs, load_inputs
from saga_dist.types import EncoderTokens, Sampling
from saga_dist.wire import tokens_from_batch, tokens_to_batch
from saga_dist.workers.engines.vllm_engine import VllmEngine

if TYPE_CHECKING:
    from saga_dist.protocols import Engine

SPEED_BAR = 4.0
"""Target for the ratio of the rates."""
PAYLOAD_BAR = 1 / 1.1
"""Target for bytes of the bare tensor divided by bytes on the wire: at most 10 % overhead."""
CACHED_BAR = 0.9
"""Target for the share of the text that is in the prefix cache."""
DEADLINE_S = 600.0
"""Longest wait for a call of the engine in seconds."""
MAX_MODEL_LEN = 512
"""Longest sequence of the engine in tokens."""


@dataclass(frozen=True, slots=True)
class RolloutCase:
    """Amount of generation."""

    num_pairs: int
    """P, pairs in one batch."""
    num_completions: int
    """G, completions per pair."""
    max_tokens: int
    """Longest completion in tokens."""
    repeats: int
    """Timed runs per side."""


def run(size: Size) -> Report:
    """Returns generated tokens per processor second for each engine, and the two further measurements."""
    work = {
        Size.TINY: RolloutCase(num_pairs=2, num_completions=2, max_tokens=6, repeats=1),
        Size.QUICK: RolloutCase(num_pairs=24, num_completions=8, max_tokens=80, repeats=3),
        Size.FULL: RolloutCase(num_pairs=48, num_completions=8, max_tokens=80, repeats=5),
    }[size]
    inputs = load_inputs(None, work.num_pairs)
    rows = _rows("stand-in", inputs, work, engines=_engines(size))
    rows.append(_payload(inputs))
    if "vllm" in _engines(size):
        # The stand-in's own prompt is too few tokens to measure this; it encodes the paper's prompt byte by byte.
        rows.append(_cached(load_inputs(None, work.num_pairs, ["prompt.order=text_first", "prompt.vocabulary=birds"])))
    if size is Size.FULL:
        with tempfile.TemporaryDirectory() as folder:
            _write_50_million(Path(folder))
            less = replace(work, num_pairs=16, repeats=3)
            rows += _rows("50 M", load_inputs(Path(folder), less.num_pairs), less, engines=_engines(size))
    return Report(
        bench="rollout",
        alternative="Hugging Face generate, batched",
        rows=tuple(rows),
        notes=(
            f"{work.num_pairs} pairs x {work.num_completions} completions of at most {work.max_tokens} tokens; from "
            "pixels; generated tokens per processor second",
            "equal: greedy completions are the same tokens",
        ),
    )


def _engines(size: Size) -> tuple[str, ...]:
    return ("transformers",) if size is Size.TINY else ("vllm", "transformers")


def _rows(model: str, inputs: BenchInputs, work: RolloutCase, *, engines: tuple[str, ...]) -> list[BenchRow]:
    rows = []
    reference = inputs.reference()
    for name in engines:
        with _running(name, inputs, max_sequences=work.num_pairs * work.num_completions) as engine, one_thread():
            sides = _RolloutSides(inputs, engine, reference, work)
            ours, other = in_turns(sides.ours, sides.generate, work.repeats)
            same = sides.greedy_agreement()
        rows.append(
            more_is_better(
                f"{model}: {name}",
                _rate(ours),
                _rate(other),
                "tok/s",
                equal=same == 1,
                bar=SPEED_BAR,
                detail={
                    "greedy_same_share": same,
                    "ours_wall_s": ours.wall,
                    "other_wall_s": other.wall,
                    "ours_tokens": ours.results[-1],
                    "other_tokens": other.results[-1],
                },
            )
        )
    return rows


def _payload(inputs: BenchInputs) -> BenchRow:
    """Returns the row of a group's bytes on the wire, compared with those of its bare tensor."""
    records = inputs.encode()
    return less_is_better(
        "payload of a group",
        statistics.mean(tokens_to_batch(record).nbytes for record in records),
        statistics.mean(record.values_NW.nbytes for record in records),
        "bytes",
        equal=all(torch.equal(tokens_from_batch(tokens_to_batch(one)).values_NW, one.values_NW) for one in records),
        bar=PAYLOAD_BAR,
    )


def _cached(inputs: BenchInputs) -> BenchRow:
    """Returns the row of the prompt text before the first image: its share that vLLM's cache holds for a new pair."""
    before_image = inputs.prompt_text.split(inputs.family.image_placeholder)[0]
    num_tokens = len(inputs.family.load_tokenizer().encode(before_image, add_special_tokens=False))
    greedy = Sampling(1, 0.0, 1.0, 4, seed=0)
    with _running("vllm", inputs, max_sequences=len(inputs.pairs), max_model_len=num_tokens + MAX_MODEL_LEN) as engine:
        assert isinstance(engine, VllmEngine)
        first, *others = inputs.encode()
        engine.generate([first], [greedy], deadline_s=DEADLINE_S)
        engine.generate(others, [greedy] * len(others), deadline_s=DEADLINE_S)
        cached = [min(count, num_tokens) for count in engine.num_cached_tokens]
    share = statistics.mean(cached) / num_tokens
    return BenchRow(
        "text first: text in the cache", share, None, "share", None, CACHED_BAR, share >= CACHED_BAR, equal=True,
        detail={"text_tokens": num_tokens},
    )  # fmt: skip


class _RolloutSides:
    """Both sides of the comparison on the same pairs.

    Args:
        inputs: pairs and checkpoint.
        engine: engine of saga_dist.
        reference: the Hugging Face model.
        work: amount of generation.
    """

    def __init__(self, inputs: BenchInputs, engine: Engine, reference: Any, work: RolloutCase) -> None:
        self._inputs, self._engine, self._reference, self._work = inputs, engine, reference, work
        self._versions = itertools.count()

    def ours(self) -> int:
        """Runs the tower and our engine; returns the number of generated tokens."""
        sampling = Sampling(self._work.num_completions, 0.7, 0.95, self._work.max_tokens, seed=1)
        groups = self._engine.generate(self._fresh_tokens(), [sampling] * self._work.num_pairs, deadline_s=DEADLINE_S)
        return sum(len(ids) for group in groups for ids in group.token_ids)

    def generate(self) -> int:
        """Runs Hugging Face ``generate`` on one batch; returns the number of generated tokens."""
        ids_BT = self._inputs.generate(
            self._reference,
            range(self._work.num_pairs),
            max_tokens=self._work.max_tokens,
            num_completions=self._work.num_completions,
        )
        return sum(map(len, ids_BT))

    def greedy_agreement(self) -> float:
        """Returns the share of pairs whose greedy completions are the same tokens on both sides."""
        greedy = Sampling(1, 0.0, 1.0, self._work.max_tokens, seed=0)
        groups = self._engine.generate(self._fresh_tokens(), [greedy] * self._work.num_pairs, deadline_s=DEADLINE_S)
        expected = self._inputs.generate(
            self._reference, range(self._work.num_pairs), max_tokens=self._work.max_tokens, num_completions=0
        )
        return statistics.mean(group.token_ids[0] == ids for group, ids in zip(groups, expected, strict=True))

    def _fresh_tokens(self) -> list[EncoderTokens]:
        # A new encoder version for every run, as in training, so that no cache entry of an earlier run is used.
        version = next(self._versions)
        return [replace(record, encoder_version=version) for record in self._inputs.encode()]


@contextmanager
def _running(
    name: str, inputs: BenchInputs, *, max_sequences: int, max_model_len: int = MAX_MODEL_LEN
) -> Iterator[Engine]:
    engine: Engine
    if name == "vllm":
        engine = VllmEngine(
            family=inputs.family,
            prompt_text=inputs.prompt_text,
            dtype="float32",
            max_model_len=max_model_len,
            max_num_seqs=max_sequences,
        )
    else:
        from saga_dist.workers.engines.transformers_engine import TransformersEngine

        engine = TransformersEngine(
            inputs.family.load_backbone(),
            family=inputs.family,
            prompt_text=inputs.prompt_text,
            max_model_len=max_model_len,
            max_rows=max_sequences,
        )
    try:
        yield engine
    finally:
        engine.close()


def _rate(timing: Timing[int]) -> float:
    """Returns the median of generated tokens per processor second."""
    return statistics.median(tokens / cpu for tokens, cpu in zip(timing.results, timing.cpu_s, strict=True))


def _write_50_million(folder: Path) -> None:
    random_model(
        folder, layers=12, width=512, heads=8, kv_heads=4, head_dim=64, intermediate=2048, language_init_std=0.05
    )
