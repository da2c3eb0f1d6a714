"""Example of a rollout engine: the transformers engine, with every group of completions appended to a file.

    PYTHONPATH=docs/examples saga-dist train configs/birds.toml runtime.kind=serial \
        rollout.engine=own_engine:RecordingEngine.from_context

``rollout.engine`` names a factory: a callable from ``EngineContext`` (model, prompt, dtype, limits) to an engine. An
engine generates completions from encoder tokens and returns the log-probability of every token under the frozen model,
before temperature and top-p. ``saga_dist.testing.engine.check_engine`` checks the engine of a factory. The file is
``$COMPLETIONS_LOG``, or completions.jsonl in the current folder, with one JSON object per group.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from saga_dist.protocols import Engine
from saga_dist.types import Completions, EncoderTokens, Sampling
from saga_dist.workers.engines.factory import EngineContext
from saga_dist.workers.engines.transformers_engine import TransformersEngine


class RecordingEngine:
    """Engine that passes requests on to another engine and appends the completions to a file.

    Args:
        engine: the engine that generates.
        path: the JSON-lines file.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self._path = path

    @classmethod
    def from_context(cls, context: EngineContext) -> RecordingEngine:
        """Returns the engine of a run; called at the start of a worker and after a failure of its engine."""
        path = Path(os.environ.get("COMPLETIONS_LOG", "completions.jsonl"))
        return cls(TransformersEngine.from_context(context), path)

    def generate(
        self, tokens: Sequence[EncoderTokens], samplings: Sequence[Sampling], *, deadline_s: float
    ) -> list[Completions]:
        """Returns one ``Completions`` per pair, in order; see ``protocols.Engine``."""
        started = time.perf_counter()
        groups = self._engine.generate(tokens, samplings, deadline_s=deadline_s)
        num_tokens = sum(len(ids) for group in groups for ids in group.token_ids)
        tokens_per_s = round(num_tokens / (time.perf_counter() - started))
        with self._path.open("a", encoding="utf-8") as file:
            for group in groups:
                row = {"pair": group.pair_id, "encoder_version": group.encoder_version, "tokens_per_s": tokens_per_s}
                file.write(json.dumps({**row, "texts": group.texts}) + "\n")
        return groups

    def close(self) -> None:
        """Frees the engine's memory."""
        self._engine.close()
