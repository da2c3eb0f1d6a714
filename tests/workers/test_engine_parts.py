"""Parts of the engines: prompts, content ids, end tokens, deadlines; no engine of vLLM is started."""

from __future__ import annotations

import gc
import json
import os
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from workers.engine_world import (
    SAMPLING,
    TOO_LATE_S,
    generate,
    prompt_text,
    start_transformers,
)

from saga_dist.errors import ConfigError, DeadlineExceeded, EngineError
from saga_dist.models.families import resolve_family
from saga_dist.types import EncoderTokens
from saga_dist.workers.engines.transformers_engine import TransformersEngine, end_token_ids
from saga_dist.workers.engines.vllm_engine import VllmEngine
from saga_dist.workers.engines.vllm_requests import content_ids


@pytest.mark.vllm
def test_batch_invariance_is_refused_without_a_gpu(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = resolve_family(tiny_checkpoint)
    with pytest.raises(ConfigError, match=r"rollout\.batch_invariant = true on a CPU; expected a GPU"):
        VllmEngine(family=family, prompt_text=prompt_text(family), batch_invariant=True)
    assert "VLLM_BATCH_INVARIANT" not in os.environ


def test_a_prompt_without_images_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="one per image"):
        VllmEngine(family=resolve_family(tiny_checkpoint), prompt_text="no picture")


def test_batches_of_the_transformers_engine_do_not_matter(tiny_checkpoint: Path, tokens: list[EncoderTokens]) -> None:
    family = resolve_family(tiny_checkpoint)
    records = [tokens[0], tokens[1], replace(tokens[0], pair_id="again"), tokens[2]]
    samplings = [replace(SAMPLING, seed=seed) for seed in range(4)]
    wide, narrow = start_transformers(family), start_transformers(family, max_rows=1)
    assert [group.token_ids for group in generate(wide, records, *samplings)] == [
        group.token_ids for group in generate(narrow, records, *samplings)
    ]


def test_the_transformers_engine_keeps_its_deadline(tiny_checkpoint: Path, tokens: list[EncoderTokens]) -> None:
    engine = start_transformers(resolve_family(tiny_checkpoint))
    with pytest.raises(DeadlineExceeded, match="2 of 2 groups unfinished"):
        engine.generate(tokens[:2], [SAMPLING] * 2, deadline_s=TOO_LATE_S)


def test_an_overflow_in_the_model_is_an_engine_error(tiny_checkpoint: Path, tokens: list[EncoderTokens]) -> None:
    engine = start_transformers(resolve_family(tiny_checkpoint))
    with pytest.raises(EngineError, match="NaN or infinite"):
        generate(engine, [replace(tokens[0], values_NW=tokens[0].values_NW * float("inf"))])
    with pytest.raises(EngineError, match="cannot be used any more"):
        generate(engine, tokens)


def test_content_ids_change_with_content_grid_and_version(tokens: list[EncoderTokens]) -> None:
    record = tokens[0]
    first, second = content_ids(record)
    assert first != second
    assert content_ids(replace(record, pair_id="other")) == [first, second]
    changed = record.values_NW.clone()
    changed[-1, -1] += 1e-6
    changed_first, changed_second = content_ids(replace(record, values_NW=changed))
    assert changed_first == first
    assert changed_second != second
    assert not set(content_ids(replace(record, encoder_version=4))) & {first, second}
    assert not set(content_ids(replace(record, grids=((1, 20, 5), (1, 5, 20))))) & {first, second}
    assert len(set(content_ids(replace(record, values_NW=record.values_NW.bfloat16())))) == 2


def test_end_token_ids_are_those_of_tokenizer_and_generation_config(tiny_checkpoint: Path) -> None:
    family = resolve_family(tiny_checkpoint)
    named = json.loads((tiny_checkpoint / "generation_config.json").read_text())["eos_token_id"]
    assert end_token_ids(family) == {family.load_tokenizer().eos_token_id, *named}


def test_closed_engines_let_go(tiny_checkpoint: Path) -> None:
    family = resolve_family(tiny_checkpoint)
    backbone = family.load_backbone()
    engine = TransformersEngine(backbone, family=family, prompt_text=prompt_text(family))
    watched = weakref.ref(backbone)
    engine.close()
    del backbone
    gc.collect()
    assert watched() is None
    with pytest.raises(EngineError, match="it was closed"):
        generate(engine, [])
