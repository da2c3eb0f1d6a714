"""Section ``engine``: vLLM with random weights; start, prefill, and tokens a second of one lease."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from saga_dist.diagnostics.gpu_check.measuring import measured
from saga_dist.diagnostics.gpu_check.random_model import DTYPE, RandomModel, random_model
from saga_dist.diagnostics.gpu_check.skipping import SectionSkipped
from saga_dist.errors import EngineError
from saga_dist.models.families.base import Family
from saga_dist.models.model_files import ModelFiles
from saga_dist.types import EncoderTokens, Sampling
from saga_dist.workers.engines.vllm_engine import VllmEngine

GPU_SHARE = 0.85
"""Share of the GPU's memory that the engine may use, which is alone on it."""
DEADLINE_S = 200.0
"""Longest time of one call of the engine, seconds."""


class WeightlessFiles(ModelFiles):
    """Files of a model without weights.

    Args:
        path: folder.
        parameters: number of weights that the model would have.
    """

    def __init__(self, path: str | Path, parameters: int) -> None:
        super().__init__(path)
        self._parameters = parameters

    def num_parameters(self) -> int:
        """Returns the number of weights that the model would have."""
        return self._parameters


def measure(size_name: str) -> dict[str, Any]:
    """Returns seconds of start and prefill, and generated tokens a second with all pairs of a micro-batch on one lease.

    Raises:
        SectionSkipped: vLLM is not installed, or does not start with random weights.
    """
    if find_spec("vllm") is None:
        raise SectionSkipped("vLLM is not installed (pip install 'saga-dist[gpu]')")
    with random_model(size_name) as model:
        dtype = DTYPE if model.device.type != "cpu" else torch.float32
        started = measured(model.device, lambda: _start(model, dtype))
        engine = started.result
        try:
            return {"start_s": started.seconds, **_generate(engine, model, dtype)}
        finally:
            engine.close()


def _start(model: RandomModel, dtype: torch.dtype) -> VllmEngine:
    size, weights = model.size, (model.shape.tower.weights, model.shape.decoder.weights)
    files = WeightlessFiles(model.family.files.name, sum(part.params for part in weights))
    family: Family = type(model.family)(files, model.family.config)
    try:
        return VllmEngine(
            family=family,
            prompt_text=model.prompt_text,
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=size.prompt_tokens + size.longest,
            max_num_seqs=size.pairs * len(size.lengths),
            gpu_memory_utilization=GPU_SHARE,
            load_format="dummy",
        )
    except EngineError as error:
        raise SectionSkipped(f"no engine with random weights: {error}") from error


def _generate(engine: VllmEngine, model: RandomModel, dtype: torch.dtype) -> dict[str, float]:
    """Returns the seconds of a prefill and the rate of one lease, each for pairs that the engine has not seen."""
    size = model.size
    full = Sampling(num_completions=len(size.lengths), temperature=0.7, top_p=0.95, max_tokens=size.longest, seed=0)

    def lease(first_seed: int) -> list[EncoderTokens]:
        found = [model.tokens(first_seed + index) for index in range(size.pairs)]
        return [replace(record, values_NW=record.values_NW.to(dtype)) for record in found]

    def generate(tokens: list[EncoderTokens], sampling: Sampling) -> int:
        groups = engine.generate(tokens, [sampling] * len(tokens), deadline_s=DEADLINE_S)
        return sum(len(ids) for group in groups for ids in group.token_ids)

    generate(lease(1000), replace(full, max_tokens=2))  # kernels are compiled at the first tokens
    prompts, pairs = lease(2000), lease(3000)
    prefill = measured(model.device, lambda: generate(prompts, replace(full, num_completions=1, max_tokens=1)))
    lease_time = measured(model.device, lambda: generate(pairs, full))
    return {
        "prefill_s": prefill.seconds,
        "prefill_tokens": size.pairs * size.prompt_tokens,
        "lease_s": lease_time.seconds,
        "tokens": lease_time.result,
        "tokens_per_s": lease_time.result / lease_time.seconds,
    }
