"""Engines of another checkpoint, order or distribution than the usual one, each started for its test."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from workers.engine_world import (
    SAMPLING,
    TOO_LATE_S,
    EngineMaker,
    OnlyOne,
    encode,
    generate,
    pixel_path_log_probs,
    start_vllm,
)

from saga_dist.config import BirdsSection
from saga_dist.data.prompts import VOCABULARIES, PromptSpec
from saga_dist.errors import DeadlineExceeded, EngineError, TokenError
from saga_dist.models.families import resolve_family
from saga_dist.objectives.policy import sampling_log_probs
from saga_dist.standin import checkpoint_path
from saga_dist.standin.world import split
from saga_dist.types import EncoderTokens, ImagePair, RolloutTask
from saga_dist.workers.rollout import RolloutWorker


def test_log_probs_can_be_those_of_the_sampling_distribution(
    make_engine: EngineMaker,
    tiny_checkpoint: Path,
    tokens: list[EncoderTokens],
    images: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    sampling = replace(SAMPLING, temperature=0.5, top_p=0.6, max_tokens=12)
    engine = make_engine(tiny_checkpoint, log_probs="sampling")
    (group,) = generate(engine, tokens[:1], sampling)
    forbidden = resolve_family(tiny_checkpoint).forbidden_token_ids

    def at_sampling(logits_TV: torch.Tensor, targets_T: torch.Tensor) -> torch.Tensor:
        temperature_T, top_p_T = (torch.full((len(targets_T),), value) for value in (0.5, 0.6))
        return sampling_log_probs(
            logits_TV, targets_T, temperature_R=temperature_T, top_p_R=top_p_T, forbidden_ids=forbidden
        )

    expected = pixel_path_log_probs(tiny_checkpoint, images[0], group, log_probs=at_sampling)
    plain = pixel_path_log_probs(tiny_checkpoint, images[0], group)
    for found_T, expected_T, plain_T in zip(group.log_probs, expected, plain, strict=True):
        # The last token within top-p may differ by rounding, by which all others change a little.
        np.testing.assert_allclose(found_T, expected_T, atol=5e-3, rtol=0)
        assert np.abs(found_T - plain_T).max() > 0.1


def test_text_before_images_works_the_same(
    make_engine: EngineMaker,
    tiny_checkpoint: Path,
    tokens: list[EncoderTokens],
    images: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    """The second call meets the shared text in the prefix cache, with other images behind it."""
    engine = make_engine(tiny_checkpoint, "text_first")
    groups = [*generate(engine, tokens[:1]), *generate(engine, tokens[1:])]
    for group, pair in zip(groups, images, strict=True):
        expected = pixel_path_log_probs(tiny_checkpoint, pair, group, "text_first")
        for found_T, expected_T in zip(group.log_probs, expected, strict=True):
            np.testing.assert_allclose(found_T, expected_T, atol=1e-4, rtol=0)


def test_markers_are_never_sampled_even_when_wanted(
    make_engine: EngineMaker, tiny_checkpoint: Path, tmp_path: Path, images: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    folder = tmp_path / "wants_markers"
    shutil.copytree(tiny_checkpoint, folder)
    family = resolve_family(folder)
    want_markers(folder / "model.safetensors", family.forbidden_token_ids)
    tokens = encode(family, images)
    sampling = replace(SAMPLING, num_completions=8)
    groups = generate(make_engine(folder), tokens, *[sampling] * 3)
    greedy = generate(make_engine(folder), tokens, *[replace(sampling, temperature=0.0)] * 3)
    assert not set(family.forbidden_token_ids) & {i for g in (*groups, *greedy) for ids in g.token_ids for i in ids}
    for group, pair in zip(groups, images, strict=True):
        # The model gives all other tokens less than e^-300 together, and that is what the behaviour log-probs must say.
        assert max(log_probs_T.max() for log_probs_T in group.log_probs) < -300
        for found_T, expected_T in zip(group.log_probs, pixel_path_log_probs(folder, pair, group), strict=True):
            np.testing.assert_allclose(found_T, expected_T, rtol=1e-4)


def want_markers(weights: Path, marker_ids: tuple[int, ...]) -> None:
    """Gives all tokens one large coordinate, which then fills the hidden state, and markers a far larger one."""
    tensors = load_file(weights)
    table_VD = tensors["model.language_model.embed_tokens.weight"]
    table_VD[:, 0] = 10.0
    table_VD[list(marker_ids), 0] = 100.0
    save_file(tensors, weights, metadata={"format": "pt"})


def test_log_probs_of_the_stand_in_equal_the_pixel_path(make_engine: EngineMaker) -> None:
    """The shipped weights on birds they were made for: near-certain tokens, where errors would show most."""
    folder = checkpoint_path()
    small = BirdsSection(val_images_per_class=2)
    birds = split("val", small).images[:4]
    pairs = [(birds[0], birds[1]), (birds[1], birds[3])]
    groups = generate(make_engine(folder), encode(resolve_family(folder), pairs))
    for group, pair in zip(groups, pairs, strict=True):
        assert all(json.loads(text)["same_species"] in ("yes", "no") for text in group.texts)
        for found_T, expected_T in zip(group.log_probs, pixel_path_log_probs(folder, pair, group), strict=True):
            np.testing.assert_allclose(found_T, expected_T, atol=1e-4, rtol=0)


@pytest.mark.vllm
def test_a_checkpoint_that_vllm_cannot_load_says_why(vllm: OnlyOne, tiny_checkpoint: Path, tmp_path: Path) -> None:
    vllm.close()
    folder = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, folder)
    family = resolve_family(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="vLLM did not start"):
        start_vllm(family)


@pytest.mark.vllm
def test_the_worker_refuses_bad_tokens_and_replaces_lost_engines(
    vllm: OnlyOne, tiny_checkpoint: Path, tokens: list[EncoderTokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad tokens never reach the engine; a deadline costs an engine; the retried group is the same group."""
    family = resolve_family(tiny_checkpoint)
    vllm.close()
    worker = RolloutWorker(
        lambda: start_vllm(family),
        family=family,
        prompt=PromptSpec(VOCABULARIES["standin_birds"]),
        dtype=torch.float32,
        advantage_epsilon=1e-4,
        deadline_s=120.0,
    )
    tasks = [RolloutTask(ImagePair(record.pair_id, 0, 1, 0, 0), None, SAMPLING) for record in tokens]
    try:
        first = worker.rollout(tasks, tokens)
        poisoned = tokens[1].values_NW.clone()
        poisoned[0, 0] = float("nan")
        for bad in (
            EncoderTokens("p1", tokens[1].values_NW[:, : tokens[1].width], tokens[1].lengths, tokens[1].grids, 0, 3),
            replace(tokens[1], values_NW=poisoned),
            replace(tokens[1], grids=((1, 10, 10), (1, 10, 10))),
            replace(tokens[1], values_NW=tokens[1].values_NW.bfloat16()),
        ):
            with pytest.raises(TokenError, match="pair p1"):
                worker.rollout(tasks, [tokens[0], bad, tokens[2]])
            again = worker.rollout(tasks[:1], tokens[:1])
            assert again[0].completions.token_ids == first[0].completions.token_ids
        assert worker.stats()["engine_replacements"] == 0

        with monkeypatch.context() as impatient:
            impatient.setattr(worker, "_deadline_s", TOO_LATE_S)
            with pytest.raises(DeadlineExceeded, match="3 of 3 groups unfinished"):
                worker.rollout(tasks, tokens)
        retried = worker.rollout(tasks, tokens)
        assert [g.completions.token_ids for g in retried] == [g.completions.token_ids for g in first]
        assert worker.stats()["engine_replacements"] == worker.stats()["engine_failures"] == 1
    finally:
        worker.close()


@pytest.mark.vllm
@pytest.mark.slow  # the parts of an engine are processes that import vLLM each
def test_two_tensor_parallel_parts_say_what_one_says(
    vllm: OnlyOne, tiny_checkpoint: Path, tokens: list[EncoderTokens]
) -> None:
    samplings = [SAMPLING] * len(tokens)
    expected = vllm(tiny_checkpoint).generate(tokens, samplings, deadline_s=300)
    vllm.close()
    engine = start_vllm(resolve_family(tiny_checkpoint), tensor_parallel_size=2)
    try:
        found = engine.generate(tokens, samplings, deadline_s=300)
    finally:
        engine.close()
    for alone, parts in zip(expected, found, strict=True):
        assert parts.token_ids == alone.token_ids
        for log_probs_T, expected_T in zip(parts.log_probs, alone.log_probs, strict=True):
            np.testing.assert_allclose(log_probs_T, expected_T, atol=1e-4)
