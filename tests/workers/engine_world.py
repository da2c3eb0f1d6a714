"""Engines on a tiny random Qwen3-VL, and the log-probabilities of Hugging Face's pixel path to compare them with.

At most one vLLM engine lives at a time: its start takes seconds and its distributed state is one per process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saga_dist.data.prompts import VOCABULARIES, PromptSpec, render_prompt
from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import Family
from saga_dist.objectives.policy import model_log_probs
from saga_dist.protocols import Engine, StreamingEngine
from saga_dist.types import Completions, EncoderTokens, Sampling
from saga_dist.workers.engines.transformers_engine import TransformersEngine
from saga_dist.workers.engines.vllm_engine import VllmEngine

SIDES = (((80, 80), (80, 80)), ((80, 80), (64, 96)), ((48, 80), (80, 80)))
"""Heights and widths of the images of three pairs: 25 + 25, 25 + 24 and 15 + 25 tokens."""
SAMPLING = Sampling(num_completions=4, temperature=0.7, top_p=0.95, max_tokens=40, seed=11)
TOO_LATE_S = 1e-9
EngineMaker = Callable[..., Engine]


class OnlyOne:
    """Makes vLLM engines and keeps the last one, closing it before another is made."""

    def __init__(self) -> None:
        self._key: tuple[Path, str, str] | None = None
        self._engine: VllmEngine | None = None

    def __call__(self, folder: Path, order: str = "images_first", log_probs: Any = "model") -> VllmEngine:
        if self._engine is None or self._engine.broken or self._key != (folder, order, log_probs):
            self.close()
            self._key = (folder, order, log_probs)
            self._engine = start_vllm(resolve_family(folder), order, log_probs=log_probs)
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = None


def prompt_text(family: Family, order: str = "images_first") -> str:
    spec = PromptSpec(VOCABULARIES["standin_birds"], "structured", order)  # type: ignore[arg-type]
    return render_prompt(spec, image_a=family.image_placeholder, image_b=family.image_placeholder)


def start_vllm(
    family: Family, order: str = "images_first", tensor_parallel_size: int = 1, log_probs: Any = "model"
) -> VllmEngine:
    return VllmEngine(
        family=family,
        prompt_text=prompt_text(family, order),
        dtype="float32",
        max_model_len=256,
        cpu_kv_cache_bytes=64 << 20,
        tensor_parallel_size=tensor_parallel_size,
        log_probs=log_probs,
    )


def start_transformers(
    family: Family, order: str = "images_first", max_rows: int = 128, log_probs: Any = "model"
) -> TransformersEngine:
    return TransformersEngine(
        family.load_backbone(),
        family=family,
        prompt_text=prompt_text(family, order),
        max_model_len=256,
        max_rows=max_rows,
        log_probs=log_probs,
    )


def encode(family: Family, images: list[tuple[np.ndarray, np.ndarray]]) -> list[EncoderTokens]:
    tower = family.load_tower()
    records = []
    for index, pair in enumerate(images):
        batch = tower.preprocess(pair)
        with torch.no_grad():
            values_NW = tower(batch)
        records.append(
            EncoderTokens(f"p{index}", values_NW, batch.lengths, batch.grids, family.layout.num_deepstack, 3)
        )
    return records


def pixel_path_log_probs(
    folder: Path,
    pair: tuple[np.ndarray, np.ndarray],
    completions: Completions,
    order: str = "images_first",
    log_probs: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = model_log_probs,
) -> list[np.ndarray]:
    """Log-probabilities of the completions' tokens by Hugging Face's whole model, from pixels, one at a time."""
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    text = prompt_text(resolve_family(folder), order)
    inputs = processor(
        text=[text], images=list(pair), return_tensors="pt", images_kwargs={"do_resize": False, "do_rescale": True}
    )
    prompt_length = inputs["input_ids"].shape[1]
    results = []
    for ids in completions.token_ids:
        ids_1T = torch.tensor([ids])
        extended = {
            name: torch.cat([value, ids_1T if name == "input_ids" else filler(name, ids_1T)], dim=1)
            if name in ("input_ids", "attention_mask", "mm_token_type_ids")
            else value
            for name, value in inputs.items()
        }
        with torch.no_grad():
            logits_SV = model(**extended).logits[0]
        results.append(log_probs(logits_SV[prompt_length - 1 : -1], ids_1T[0]).numpy())
    return results


def filler(name: str, ids_1T: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(ids_1T) if name == "attention_mask" else torch.zeros_like(ids_1T)


def generate(engine: Engine, tokens: list[EncoderTokens], *samplings: Sampling) -> list[Completions]:
    return engine.generate(tokens, samplings or [SAMPLING] * len(tokens), deadline_s=120.0)


def steps_until(engine: StreamingEngine, number: int) -> list[Completions]:
    """The next groups that are finished, in order."""
    found: list[Completions] = []
    for _ in range(1000):
        if len(found) >= number:
            break
        found += engine.step()
    return found
