"""The example of image embeddings in vLLM: the page's command, with the answers that vLLM gives to the pixels."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.page import run_command, words_of
from PIL import Image

from saga_dist.models.encoder import Encoder, load
from saga_dist.models.pooler import Pooler
from saga_dist.workers.engines.process_state import process_state_kept
from saga_dist.workers.engines.vllm_engine import ENVIRONMENT

pytestmark = pytest.mark.vllm

SCRIPT = "image_embeddings_into_vllm.py"
CPU = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "kv_cache_memory_bytes": 64 << 20}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[dict[str, Any]]:
    """The names that the page's command leaves; the name of the model is that of a folder with a tiny one."""
    place = tmp_path_factory.mktemp("embeddings")
    model, *files = words_of(SCRIPT)[1:]
    (place / model).parent.mkdir()
    (place / model).symlink_to(tiny_checkpoint)
    for seed, file in enumerate(files):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((100, 120)).save(place / file)
    with pytest.MonkeyPatch.context() as patch, process_state_kept():
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.chdir(place)
        import vllm
        from vllm.platforms import current_platform

        patch.setattr(type(current_platform), "simple_compile_backend", "eager")
        patch.setattr(vllm, "LLM", partial(vllm.LLM, **CPU))
        names = run_command(SCRIPT, patch)
        yield names
        engine = names.pop("llm").llm_engine
        engine.engine_core.shutdown()
        engine.renderer.shutdown()
        del engine
        gc.collect()


@pytest.fixture(scope="module")
def from_tokens(script: dict[str, Any]) -> Any:
    """vLLM's answer to the tokens."""
    return script["answer"](script["llm"], script["tokens"])


def log_probs(output: Any) -> np.ndarray:
    """[T] of the answer's tokens."""
    (answer,) = output.outputs
    return np.array([step[token].logprob for step, token in zip(answer.logprobs, answer.token_ids, strict=True)])


def test_tokens_get_the_answer_of_the_pixels(script: dict[str, Any], from_tokens: Any) -> None:
    from_pixels = script["answer"](script["llm"], script["images"])
    assert from_tokens.prompt_token_ids == from_pixels.prompt_token_ids
    assert from_tokens.outputs[0].token_ids == from_pixels.outputs[0].token_ids
    np.testing.assert_allclose(log_probs(from_tokens), log_probs(from_pixels), atol=1e-4, rtol=0)


@pytest.mark.parametrize("columns", [slice(0, 128), slice(128, None)], ids=["main tokens", "DeepStack maps"])
def test_every_column_reaches_the_answer(script: dict[str, Any], from_tokens: Any, columns: slice) -> None:
    """The agreement above would mean little if the columns made no difference."""
    values_NW = script["tokens"]["image_embeds"].clone()
    values_NW[:, columns] = 0
    blanked = script["answer"](script["llm"], {**script["tokens"], "image_embeds": values_NW})
    assert np.abs(log_probs(blanked)[0] - log_probs(from_tokens)[0]) > 1e-3


def test_a_saved_encoder_has_such_a_tower(script: dict[str, Any], tmp_path: Path) -> None:
    tower, processor = script["tower"], script["AutoImageProcessor"].from_pretrained(script["model"])
    Encoder(tower, Pooler(width=tower.layout.width, embedding_dim=16, seed=1), image_size=80).save(tmp_path)
    again = script["image_tokens"](load(tmp_path).tower, processor, script["images"])
    torch.testing.assert_close(again, script["tokens"], atol=1e-5, rtol=0)
