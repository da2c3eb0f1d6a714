"""Real engines on a tiny random Qwen3-VL with DeepStack: vLLM and transformers against Hugging Face's pixel path.

At most one vLLM engine lives at a time (its start takes seconds and its distributed state is one per process), so tests
that ask for the same one stand together.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saga_dist.config import BirdsSection
from saga_dist.data.prompts import VOCABULARIES, PromptSpec, render_prompt
from saga_dist.errors import ConfigError, DeadlineExceeded, EngineError, TokenError
from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import Family
from saga_dist.objectives.policy import model_log_probs, sampling_log_probs
from saga_dist.protocols import Engine, StreamingEngine
from saga_dist.standin import checkpoint_path
from saga_dist.standin.world import split
from saga_dist.types import Completions, EncoderTokens, ImagePair, RolloutTask, Sampling
from saga_dist.workers.engines.transformers_engine import TransformersEngine, end_token_ids
from saga_dist.workers.engines.vllm_engine import VllmEngine
from saga_dist.workers.engines.vllm_requests import content_ids
from saga_dist.workers.rollout import RolloutWorker

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


@pytest.mark.vllm
def test_batch_invariance_is_refused_without_a_gpu(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = resolve_family(tiny_checkpoint)
    with pytest.raises(ConfigError, match=r"rollout\.batch_invariant = true on a CPU; expected a GPU"):
        VllmEngine(family=family, prompt_text=prompt_text(family), batch_invariant=True)
    assert "VLLM_BATCH_INVARIANT" not in os.environ


@pytest.fixture(scope="module")
def vllm() -> Iterator[OnlyOne]:
    maker = OnlyOne()
    yield maker
    maker.close()


@pytest.fixture(params=[pytest.param("vllm", marks=pytest.mark.vllm), "transformers"])
def make_engine(request: pytest.FixtureRequest, vllm: OnlyOne) -> EngineMaker:
    """Makes the engine under test for a checkpoint and an order of text and images."""
    if request.param == "vllm":
        return vllm
    return lambda folder, order="images_first", log_probs="model": start_transformers(
        resolve_family(folder), order, log_probs=log_probs
    )


@pytest.fixture(scope="module")
def images() -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(5)
    return [tuple(generator.integers(0, 256, (*side, 3), dtype=np.uint8) for side in sides) for sides in SIDES]  # type: ignore[misc]


@pytest.fixture(scope="module")
def tokens(tiny_checkpoint: Path, images: list[tuple[np.ndarray, np.ndarray]]) -> list[EncoderTokens]:
    """Our own tower's tokens of each pair, DeepStack included."""
    family = resolve_family(tiny_checkpoint)
    assert family.layout.num_deepstack > 0
    return encode(family, images)


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


# ---------------------------------------------------------------- one engine of vLLM for all of these


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


def test_batches_of_the_transformers_engine_do_not_matter(tiny_checkpoint: Path, tokens: list[EncoderTokens]) -> None:
    family = resolve_family(tiny_checkpoint)
    records = [tokens[0], tokens[1], replace(tokens[0], pair_id="again"), tokens[2]]
    samplings = [replace(SAMPLING, seed=seed) for seed in range(4)]
    wide, narrow = start_transformers(family), start_transformers(family, max_rows=1)
    assert [group.token_ids for group in generate(wide, records, *samplings)] == [
        group.token_ids for group in generate(narrow, records, *samplings)
    ]


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


def steps_until(engine: StreamingEngine, number: int) -> list[Completions]:
    """The next groups that are finished, in order."""
    found: list[Completions] = []
    for _ in range(1000):
        if len(found) >= number:
            break
        found += engine.step()
    return found


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


# ---------------------------------------------------------------- engines of their own


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


# ---------------------------------------------------------------- what goes wrong


def test_a_prompt_without_images_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="one per image"):
        VllmEngine(family=resolve_family(tiny_checkpoint), prompt_text="no picture")


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


# ---------------------------------------------------------------- parts


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
