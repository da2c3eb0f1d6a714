"""Engines on every device: what a group must be, whatever program samples it.

vLLM runs another program on a GPU than on a CPU, so what the product needs of it is pinned on both: the size of its
cache, seeds, forbidden tokens, log-probabilities of replay's model, and DeepStack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import Family
from saga_dist.types import Completions, EncoderTokens, Sampling
from saga_dist.workers.engines.transformers_engine import TransformersEngine
from saga_dist.workers.engines.vllm_arguments import EngineSize
from saga_dist.workers.engines.vllm_engine import VllmEngine

SAMPLING = Sampling(num_completions=4, temperature=0.7, top_p=0.95, max_tokens=24, seed=11)
HOT = replace(SAMPLING, num_completions=8, temperature=2.0, top_p=1.0, max_tokens=60)
CONTEXT, SEQUENCES, SHARE = 256, 16, 0.3
ENGINES = [
    pytest.param(("vllm", "cpu"), marks=pytest.mark.vllm),
    pytest.param(("vllm", "cuda"), marks=[pytest.mark.vllm, pytest.mark.gpu]),
    ("transformers", "cpu"),
    pytest.param(("transformers", "cuda"), marks=pytest.mark.gpu),
]


@dataclass(frozen=True)
class Running:
    """An engine, the family of its model, and encoder tokens of two pairs."""

    engine: Any
    family: Family
    prompt_text: str
    device: torch.device
    dtype: torch.dtype
    tokens: list[EncoderTokens]

    def generate(self, tokens: list[EncoderTokens], sampling: Sampling = SAMPLING) -> list[Completions]:
        found: list[Completions] = self.engine.generate(tokens, [sampling] * len(tokens), deadline_s=300.0)
        return found


@pytest.fixture(scope="module", params=ENGINES, ids=lambda param: "-".join(param))
def running(request: pytest.FixtureRequest, tiny_checkpoint: Path) -> Iterator[Running]:
    """float32 on a CPU; bfloat16 on a GPU, as in training."""
    name, kind = request.param
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda", 0) if kind == "cuda" else torch.device("cpu")
    dtype, family = torch.bfloat16 if kind == "cuda" else torch.float32, resolve_family(tiny_checkpoint)
    image, chat = family.image_placeholder, family.chat_format
    text = f"{chat.before_user}{image} and {image}: same species?{chat.after_user}"
    engine: Any
    if name == "vllm":
        engine = VllmEngine(
            family=family, prompt_text=text, dtype=str(dtype).removeprefix("torch."), max_model_len=CONTEXT,
            max_num_seqs=SEQUENCES, gpu_memory_utilization=SHARE,
        )  # fmt: skip
    else:
        backbone = family.load_backbone(dtype=dtype, device=device)
        engine = TransformersEngine(backbone, family=family, prompt_text=text, max_model_len=CONTEXT)
    yield Running(engine, family, text, device, dtype, encoded(family, dtype))
    engine.close()


def encoded(family: Family, dtype: torch.dtype) -> list[EncoderTokens]:
    tower, rng = family.load_tower(), np.random.default_rng(5)
    records = []
    for index in range(2):
        pixels = tower.preprocess([rng.integers(0, 256, (80, 80, 3), dtype=np.uint8) for _ in range(2)])
        with torch.no_grad():
            values_NW = tower(pixels).to(dtype)
        records.append(
            EncoderTokens(f"p{index}", values_NW, pixels.lengths, pixels.grids, family.layout.num_deepstack, 3)
        )
    return records


def test_the_same_seed_in_another_batch_samples_the_same_group(running: Running) -> None:
    """To the bit in float32; in bfloat16 batches round differently, and a completion may part from its twin."""
    first, other = running.tokens
    (alone,) = running.generate([first])
    behind = running.generate([other, first])[1]
    same = [one == two for one, two in zip(alone.token_ids, behind.token_ids, strict=True)]
    assert all(same) if running.dtype == torch.float32 else sum(same) >= len(same) // 2
    assert len(set(alone.token_ids)) > 1, "the completions of a group differ"


def test_forbidden_ids_are_never_sampled(running: Running) -> None:
    (group,) = running.generate(running.tokens[:1], HOT)
    sampled = {token for ids in group.token_ids for token in ids}
    assert len(sampled) > 50, "hot sampling reaches most of the vocabulary"
    assert sampled.isdisjoint(running.family.forbidden_token_ids)


def fresh_log_probs(running: Running, record: EncoderTokens, group: Completions) -> list[np.ndarray]:
    """Log-probabilities of a group's tokens by a fresh forward pass of the backbone that replay loads."""
    backbone = running.family.load_backbone(dtype=running.dtype, device=running.device)
    ids = running.family.load_tokenizer().encode(running.prompt_text, add_special_tokens=False)
    prompt = backbone.build_layout(ids, record.grids)
    found = []
    with torch.no_grad():
        values_NW = record.values_NW.to(running.device)
        past = backbone.prefill(prompt, values_NW, slice(0, len(prompt.token_ids_S) - 1))
        for completion in group.token_ids:
            own = torch.tensor(completion, device=running.device)
            sequence = torch.cat([prompt.token_ids_S[-1:], own[:-1]])
            hidden_TD = backbone.forward_packed(past, [sequence], prompt.next_position - 1).hidden_RD
            log_probs_TV = backbone.logits(hidden_TD).log_softmax(-1)
            found.append(log_probs_TV.gather(1, own[:, None])[:, 0].float().cpu().numpy())
    return found


def test_log_probs_are_those_of_a_fresh_forward_pass(running: Running) -> None:
    for record, group in zip(running.tokens, running.generate(running.tokens), strict=True):
        expected = np.concatenate(fresh_log_probs(running, record, group))
        differences = np.abs(np.concatenate(group.log_probs) - expected)
        if running.dtype == torch.float32:
            assert differences.max() <= 1e-4
        else:
            assert np.median(differences) <= 0.05


def test_deepstack_reaches_the_engine(running: Running) -> None:
    """Without the DeepStack maps the same tokens have other log-probabilities, and those of a pass without the maps."""
    width, record = running.family.layout.width, running.tokens[0]
    assert record.values_NW.shape[1] > width
    blank = record.values_NW.clone()
    blank[:, width:] = 0
    without = replace(record, values_NW=blank)
    (group,), (other,) = running.generate([record]), running.generate([without])
    here, there = (np.concatenate(fresh_log_probs(running, each, group)) for each in (record, without))
    assert np.abs(here - there).mean() > 0.01
    found = np.concatenate(group.log_probs)
    assert np.abs(found - here).mean() < np.abs(found - there).mean() / 2
    assert other.token_ids != group.token_ids or other.log_probs[0][0] != group.log_probs[0][0]


def test_the_cache_of_vllm_has_the_computed_size(running: Running) -> None:
    if not isinstance(running.engine, VllmEngine):
        assert not hasattr(running.engine, "_llm"), "only vLLM allocates a cache in advance"
        return
    name = str(running.dtype).removeprefix("torch.")
    size = EngineSize.of(running.family, name, context=CONTEXT, sequences=SEQUENCES)
    expected = size.on_cpu()
    if running.device.type == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
        expected = size.on_gpu(memory=memory, share=SHARE, shards=1)
    config = running.engine._llm.vllm_config  # type: ignore[union-attr]
    assert config.cache_config.kv_cache_memory_bytes == expected
    if running.device.type == "cuda":
        assert config.scheduler_config.max_num_batched_tokens == 8192
