"""Real engines on a tiny random Qwen3-VL with DeepStack: vLLM and transformers against Hugging Face's pixel path.

All tests use the same engine of vLLM, and the last one breaks it.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from workers.engine_world import (
    SAMPLING,
    EngineMaker,
    OnlyOne,
    generate,
    pixel_path_log_probs,
    prompt_text,
    steps_until,
)

from saga_dist.errors import ConfigError, EngineError
from saga_dist.models.families import resolve_family
from saga_dist.types import EncoderTokens
from saga_dist.workers.engines.transformers_engine import end_token_ids


@pytest.mark.vllm
def test_vllm_leaves_the_process_as_it_was(vllm: OnlyOne, tiny_checkpoint: Path) -> None:
    vllm.close()
    threads, preload = torch.get_num_threads(), os.environ.get("LD_PRELOAD")
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    vllm(tiny_checkpoint)
    assert os.environ.get("LD_PRELOAD") == preload
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # type: ignore[union-attr]
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


def test_log_probs_equal_the_pixel_path(
    make_engine: EngineMaker,
    tiny_checkpoint: Path,
    tokens: list[EncoderTokens],
    images: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    samplings = [replace(SAMPLING, max_tokens=length, seed=length) for length in (40, 23, 7)]
    groups = generate(make_engine(tiny_checkpoint), tokens, *samplings)
    ends = end_token_ids(resolve_family(tiny_checkpoint))
    for group, sampling, pair in zip(groups, samplings, images, strict=True):
        expected = pixel_path_log_probs(tiny_checkpoint, pair, group)
        for ids, found_T, expected_T, reason in zip(
            group.token_ids, group.log_probs, expected, group.finish_reasons, strict=True
        ):
            assert found_T.dtype == np.float32
            assert found_T.shape == (len(ids),)
            np.testing.assert_allclose(found_T, expected_T, atol=1e-4, rtol=0)
            assert (reason == "stop") == (ids[-1] in ends)
            assert reason == "stop" or len(ids) == sampling.max_tokens
            assert not ends & set(ids[:-1])
    assert len({len(ids) for group in groups for ids in group.token_ids}) > 3, "the completions should be ragged"
    assert [group.encoder_version for group in groups] == [3, 3, 3]


def test_deepstack_reaches_the_log_probs(
    make_engine: EngineMaker, tiny_checkpoint: Path, tokens: list[EncoderTokens]
) -> None:
    """The agreement above would mean little if the DeepStack columns made no difference."""
    width = tokens[0].width
    blanked = tokens[0].values_NW.clone()
    blanked[:, width:] = 0
    one = replace(SAMPLING, num_completions=1, temperature=0.0, max_tokens=1)
    engine = make_engine(tiny_checkpoint)
    (full,), (without,) = (
        generate(engine, [record], one) for record in (tokens[0], replace(tokens[0], values_NW=blanked))
    )
    assert abs(full.log_probs[0][0] - without.log_probs[0][0]) > 1e-3


def test_same_request_same_completions(
    make_engine: EngineMaker, tiny_checkpoint: Path, tokens: list[EncoderTokens]
) -> None:
    engine = make_engine(tiny_checkpoint)
    eight = replace(SAMPLING, num_completions=8)
    first = generate(engine, tokens)
    alone = [generate(engine, [record])[0] for record in reversed(tokens)]
    assert [group.token_ids for group in reversed(alone)] == [group.token_ids for group in first]
    (larger,) = generate(engine, tokens[:1], eight)
    assert larger.token_ids[:4] == first[0].token_ids, "the first completions must not depend on the group's size"
    assert len(set(larger.token_ids)) == 8, "completions of a group must differ"
    (other,) = generate(engine, tokens[:1], replace(SAMPLING, seed=12_000_000_000_000_000_000 >> 1))
    assert other.token_ids != first[0].token_ids


def test_temperature_zero_takes_the_most_likely_token(
    make_engine: EngineMaker, tiny_checkpoint: Path, tokens: list[EncoderTokens]
) -> None:
    greedy = replace(SAMPLING, temperature=0.0, num_completions=3, max_tokens=12)
    (group,) = generate(make_engine(tiny_checkpoint), tokens[:1], greedy)
    assert len(group.token_ids) == len(group.log_probs) == 3
    assert len(set(group.token_ids)) == 1
    family = resolve_family(tiny_checkpoint)
    backbone = family.load_backbone()
    prompt_ids = family.load_tokenizer().encode(prompt_text(family), add_special_tokens=False)
    layout = backbone.build_layout(prompt_ids, tokens[0].grids)
    with torch.no_grad():
        past = backbone.prefill(layout, tokens[0].values_NW, slice(0, len(layout.token_ids_S) - 1))
        ids_1T = torch.tensor([[*layout.token_ids_S[-1:].tolist(), *group.token_ids[0][:-1]]])
        hidden_TD = backbone.forward_completions(past, ids_1T, layout.next_position - 1).hidden_GTD[0]
        logits_TV = backbone.logits(hidden_TD).index_fill(1, torch.tensor(family.forbidden_token_ids), -torch.inf)
    assert tuple(logits_TV.argmax(-1).tolist()) == group.token_ids[0]


def test_too_long_a_completion_is_refused_and_nothing_breaks(
    make_engine: EngineMaker, tiny_checkpoint: Path, tokens: list[EncoderTokens]
) -> None:
    engine = make_engine(tiny_checkpoint)
    with pytest.raises(ConfigError, match="rollout.max_model_len"):
        generate(engine, tokens[:1], replace(SAMPLING, max_tokens=200))
    assert len(generate(engine, tokens)) == 3


@pytest.mark.vllm
def test_groups_that_join_a_batch_of_vllm_are_those_of_a_call(
    vllm: OnlyOne, tiny_checkpoint: Path, tokens: list[EncoderTokens]
) -> None:
    """A group of two tokens joins one of forty while that is generated, and is finished first."""
    engine = vllm(tiny_checkpoint)
    samplings = [SAMPLING, replace(SAMPLING, max_tokens=2), replace(SAMPLING, seed=7)]
    expected = generate(engine, tokens, *samplings)
    engine.add(tokens[0], samplings[0])
    assert engine.step() == []
    engine.add(tokens[1], samplings[1])
    (short,) = steps_until(engine, 1)
    engine.add(tokens[2], samplings[2])
    found = {group.pair_id: group for group in [short, *steps_until(engine, 2)]}
    assert next(iter(found)) == "p1" and set(found) == {"p0", "p1", "p2"}
    for group in expected:
        assert found[group.pair_id].token_ids == group.token_ids
        assert found[group.pair_id].texts == group.texts
        assert found[group.pair_id].finish_reasons == group.finish_reasons
        for found_T, expected_T in zip(found[group.pair_id].log_probs, group.log_probs, strict=True):
            np.testing.assert_allclose(found_T, expected_T, atol=1e-5, rtol=0)
    assert not engine._llm.has_unfinished_requests()  # type: ignore[union-attr]


@pytest.mark.vllm
def test_aborted_groups_leave_vllm_as_if_they_had_never_been_there(
    vllm: OnlyOne, tiny_checkpoint: Path, tokens: list[EncoderTokens]
) -> None:
    engine = vllm(tiny_checkpoint)
    expected = {group.pair_id: group.token_ids for group in generate(engine, tokens)}
    assert max(len(ids) for ids in expected["p0"]) > 5, "it is aborted before it is finished"
    for num_steps in (0, 1, 5):  # before its prefill, after it, and while it is decoded
        for record in tokens[:2]:
            engine.add(record, SAMPLING)
        for _ in range(num_steps):
            assert engine.step() == []
        engine.abort(["p0", "no such pair"])
        engine.add(tokens[2], SAMPLING)
        found = {group.pair_id: group.token_ids for group in steps_until(engine, 2)}
        assert found == {name: expected[name] for name in ("p1", "p2")}
        engine.add(tokens[0], SAMPLING)
        assert [group.token_ids for group in steps_until(engine, 1)] == [expected["p0"]]
    engine.add(tokens[0], SAMPLING)
    engine.abort(["p0"])
    llm = engine._llm
    assert llm is not None and not llm.has_unfinished_requests()
    assert not llm.output_processor.parent_requests and not llm.output_processor.external_req_ids, "nothing is kept"
    assert [group.token_ids for group in generate(engine, tokens)] == list(expected.values())


@pytest.mark.vllm
def test_too_long_a_group_is_refused_and_those_in_the_batch_go_on(
    vllm: OnlyOne, tiny_checkpoint: Path, tokens: list[EncoderTokens]
) -> None:
    engine = vllm(tiny_checkpoint)
    (expected,) = generate(engine, tokens[:1])
    engine.add(tokens[0], SAMPLING)
    engine.step()
    with pytest.raises(ConfigError, match="rollout.max_model_len"):
        engine.add(tokens[1], replace(SAMPLING, max_tokens=200))
    assert [group.token_ids for group in steps_until(engine, 1)] == [expected.token_ids]


@pytest.mark.vllm
def test_a_real_failure_inside_vllm_breaks_the_engine_for_good(
    vllm: OnlyOne, tiny_checkpoint: Path, tokens: list[EncoderTokens]
) -> None:
    engine = vllm(tiny_checkpoint)
    shifted = replace(tokens[0], grids=((1, 10, 8), (1, 10, 12)))  # unchecked: 20 + 30 tokens announced, 25 + 25 sent
    narrow = EncoderTokens("bad", shifted.values_NW[:, :7], shifted.lengths, shifted.grids, 0, 0)
    with pytest.raises(EngineError, match="vLLM: .*Error"):
        generate(engine, [narrow], SAMPLING)
    assert engine.broken
    for call in (lambda: generate(engine, tokens), lambda: engine.add(tokens[0], SAMPLING), engine.step):
        with pytest.raises(EngineError, match="cannot be used any more"):
            call()
