"""An engine that says what a function tells it to: for tests, for dry runs of a cluster, and for debugging rewards.

It is a supported part of the package: no model, no GPU, deterministic, milliseconds per group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from saga_dist.errors import DeadlineExceeded, EngineError
from saga_dist.types import Completions, EncoderTokens, Sampling

FaultPlan = Callable[[str, int, EncoderTokens], str]
"""(pair id, index of the completion, tokens) to the text of that completion. It may raise, as a real engine may."""


class ScriptedEngine:
    """Returns the texts of a script as if a model had sampled them; implements ``protocols.Engine``.

    Args:
        script: writes each completion.
        tokenizer: ``encode(text, add_special_tokens=False)`` and ``decode(ids, skip_special_tokens=True)``.
        end_token_id: appended to every completion that is not cut off by ``max_tokens``; None appends nothing.
        log_prob: log-probability reported for every token.
    """

    def __init__(
        self, script: FaultPlan, tokenizer: Any, *, end_token_id: int | None = None, log_prob: float = -1.0
    ) -> None:
        self.broken = ""
        """Why the engine cannot be used any more; empty while it can."""
        self._script, self._tokenizer = script, tokenizer
        self._end, self._log_prob = end_token_id, log_prob

    def generate(
        self, tokens: Sequence[EncoderTokens], samplings: Sequence[Sampling], *, deadline_s: float
    ) -> list[Completions]:
        """Returns one ``Completions`` per pair, in order.

        Raises:
            EngineError: the engine is broken or closed, or the script raised it.
            DeadlineExceeded: the script took longer than ``deadline_s`` seconds, or raised it.
        """
        if self.broken:
            raise EngineError(f"the engine cannot be used any more: {self.broken}", where="scripted engine")
        deadline = time.monotonic() + deadline_s
        self.broken = "a call failed"  # stays so unless the script ends well
        results = []
        for record, sampling in zip(tokens, samplings, strict=True):
            results.append(self._group(record, sampling))
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"not finished after {deadline_s:g} s", where="scripted engine")
        self.broken = ""
        return results

    def close(self) -> None:
        """Ends the engine."""
        self.broken = "it was closed"

    def _group(self, record: EncoderTokens, sampling: Sampling) -> Completions:
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
