"""An engine whose completions are written by a function: for tests, dry runs of a cluster, and debugging of rewards.

It is a supported part of the package. It needs no model and no GPU, is deterministic, and takes milliseconds per group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saga_dist.errors import DeadlineExceeded, EngineError
from saga_dist.types import Completions, EncoderTokens, Sampling

CompletionScript = Callable[[str, int, EncoderTokens], str]
"""Returns the text of a completion from pair id, index of the completion and encoder tokens. It may raise, as an engine
may."""


@dataclass(slots=True)
class _Open:
    """A group in the batch."""

    record: EncoderTokens
    """Encoder tokens of the pair."""
    sampling: Sampling
    """Sampling parameters."""
    steps_left: int
    """Number of steps after which the group is finished."""


class ScriptedEngine:
    """Returns the texts of a script as if a model had sampled them; implements ``protocols.StreamingEngine``.

    Args:
        script: returns the text of each completion.
        tokenizer: has ``encode(text, add_special_tokens=False)`` and ``decode(ids, skip_special_tokens=True)``.
        end_token_id: id appended to every completion that ``max_tokens`` does not truncate; None appends nothing.
        log_prob: log-probability reported for every token.
        num_steps: number of steps that the group of a pair stays in the batch, from its pair id.
    """

    def __init__(
        self,
        script: CompletionScript,
        tokenizer: Any,
        *,
        end_token_id: int | None = None,
        log_prob: float = -1.0,
        num_steps: Callable[[str], int] = lambda pair_id: 1,
    ) -> None:
        self.broken = ""
        """Reason why the engine cannot be used any more; empty while it can."""
        self._script, self._tokenizer = script, tokenizer
        self._end, self._log_prob, self._num_steps = end_token_id, log_prob, num_steps
        self._batch: list[_Open] = []

    def generate(
        self, tokens: Sequence[EncoderTokens], samplings: Sequence[Sampling], *, deadline_s: float
    ) -> list[Completions]:
        """Returns one ``Completions`` per pair, in order.

        Args:
            tokens: encoder tokens of each pair.
            samplings: sampling parameters of each pair; only ``num_completions`` and ``max_tokens`` are used.
            deadline_s: longest time for the call, seconds; checked after every group.

        Raises:
            EngineError: the engine failed before or was closed, or the script raised this error.
            DeadlineExceeded: the script took longer than ``deadline_s``, or raised this error.
        """
        self._check_usable()
        deadline = time.monotonic() + deadline_s
        self.broken = "a call failed"  # reset below, unless the script raises
        results = []
        for record, sampling in zip(tokens, samplings, strict=True):
            results.append(self._group(record, sampling))
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"not finished after {deadline_s:g} s", where="scripted engine")
        self.broken = ""
        return results

    def add(self, tokens: EncoderTokens, sampling: Sampling) -> None:
        """Adds one group to the batch; raises ``EngineError`` when the engine failed before or was closed."""
        self._check_usable()
        self._batch.append(_Open(tokens, sampling, self._num_steps(tokens.pair_id)))

    def step(self) -> list[Completions]:
        """Takes one step of every group in the batch; returns the groups that are finished, in order of ``add``.

        Raises:
            EngineError: the engine failed before or was closed, or the script raised this error.
        """
        self._check_usable()
        self.broken = "a call failed"  # reset below, unless the script raises
        for group in self._batch:
            group.steps_left -= 1
        finished = [group for group in self._batch if group.steps_left <= 0]
        self._batch = [group for group in self._batch if group.steps_left > 0]
        results = [self._group(group.record, group.sampling) for group in finished]
        self.broken = ""
        return results

    def abort(self, pair_ids: Collection[str]) -> None:
        """Removes the groups of these pairs from the batch; ignores other ids."""
        self._batch = [group for group in self._batch if group.record.pair_id not in pair_ids]

    def close(self) -> None:
        """Closes the engine; later calls raise."""
        self.broken = "it was closed"

    def _check_usable(self) -> None:
        if self.broken:
            raise EngineError(f"the engine cannot be used any more: {self.broken}", where="scripted engine")

    def _group(self, record: EncoderTokens, sampling: Sampling) -> Completions:
        """Returns the completions of one pair."""
        ids: list[tuple[int, ...]] = []
        reasons: list[str] = []
        for completion in range(sampling.num_completions):
            text = self._script(record.pair_id, completion, record)
            encoded = list(self._tokenizer.encode(text, add_special_tokens=False))
            encoded += [] if self._end is None else [self._end]
            reasons.append("length" if len(encoded) > sampling.max_tokens else "stop")
            ids.append(tuple(int(token) for token in encoded[: sampling.max_tokens]))
        return Completions(
            pair_id=record.pair_id,
            token_ids=tuple(ids),
            texts=tuple(self._tokenizer.decode(list(each), skip_special_tokens=True) for each in ids),
            log_probs=tuple(np.full(len(each), self._log_prob, dtype=np.float32) for each in ids),
            finish_reasons=tuple(reasons),
            sampling=sampling,
            encoder_version=record.encoder_version,
        )
