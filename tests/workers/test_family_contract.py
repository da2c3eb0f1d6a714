"""Every family through replay and engines, against the untouched Hugging Face model on pixels.

The crown test of ``test_replay.py`` in small, once for each family and order of the prompt; attention of every layer
against eager attention; and log-probabilities of real vLLM and of the transformers engine against the pixel path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from workers.family_world import (
    TEXTS,
    World,
    assert_gradients,
    end_to_end,
    gradients_of,
    group_of,
    record_of,
    tower_gradients,
    tower_weights,
    world_of,
)

from saga_dist.config.method import ModelSection
from saga_dist.data.forced_verdict import ForcedVerdict
from saga_dist.errors import TokenError
from saga_dist.models.families import decoder
from saga_dist.models.lora import merged_weights
from saga_dist.models.trained_part import choose_trained
from saga_dist.protocols import Engine
from saga_dist.types import (
    ImagePair,
    ReplayTask,
    Sampling,
    VerdictTask,
)
from saga_dist.workers import replay
from saga_dist.workers.engines.transformers_engine import TransformersEngine
from saga_dist.workers.engines.validation import validate_tokens
from saga_dist.workers.engines.vllm_engine import VllmEngine
from saga_dist.workers.replay import ReplayWorker

FAMILIES = ("qwen3_vl", "qwen2_5_vl", "internvl")
SAMPLING = Sampling(num_completions=4, temperature=0.7, top_p=0.95, max_tokens=24, seed=11)


@pytest.fixture(scope="module", params=list(TEXTS))
def world(request: pytest.FixtureRequest, family_checkpoint: Path) -> World:
    return world_of(family_checkpoint, request.param)


# ---------------------------------------------------------------- replay


def test_replay_and_tower_backward_are_end_to_end_autograd(world: World) -> None:
    family = world.family
    group = group_of(world.reference.config.text_config.vocab_size)
    expected_NW, expected_tower, expected_loss = end_to_end(world, group)

    tower, backbone = family.load_tower(), family.load_backbone()
    digest = backbone.digest()
    worker = ReplayWorker(
        backbone, family=family, prompt_text=world.prompt_text, kl_layer=2, completions_per_chunk=3, logits_chunk=5
    )
    pixels = tower.preprocess(world.images)
    values_NW = tower(pixels)
    record = record_of(family, pixels, values_NW)
    found = worker.replay(ReplayTask(group, record, group.num_tokens, True), record)
    values_NW.backward(found.values_NW)
    assert_gradients(world, tower_gradients(tower), found, expected_NW, expected_tower)
    assert found.loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-6)
    assert worker.backbone_digest() == digest
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in backbone.parameters())


def test_a_part_of_the_tower_gets_its_share_of_end_to_end_autograd(world: World) -> None:
    """For A it is s B^T dL/dW', for B s dL/dW' A^T, with W' = W + s B A the merged weights of the untouched model."""
    family, scale = world.family, 3
    train = {"images_first": "last:2", "text_first": "lora"}[world.order]  # one of the two in each world
    tower, backbone = family.load_tower(), family.load_backbone()
    choose_trained(tower, ModelSection(train=train, lora_rank=2, lora_alpha=2 * scale), seed=3)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    group = group_of(world.reference.config.text_config.vocab_size)
    with tower_weights(world, merged_weights(tower)):
        expected_NW, whole, _ = end_to_end(world, group)
    worker = ReplayWorker(backbone, family=family, prompt_text=world.prompt_text, kl_layer=2, completions_per_chunk=3)
    pixels = tower.preprocess(world.images)
    values_NW = tower(pixels)
    record = record_of(family, pixels, values_NW)
    found = worker.replay(ReplayTask(group, record, group.num_tokens, True), record)
    values_NW.backward(found.values_NW)

    weights = dict(tower.model.named_parameters())
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    expected = {}
    for name in trained:
        layer, is_update, part = name.partition(".lora_")
        if not is_update:
            expected[name] = whole[name]
            continue
        a, b = (weights[f"{layer}.lora_{which}.default.weight"].detach() for which in "AB")
        gradient = whole[f"{layer}.weight"]
        expected[name] = scale * (b.T @ gradient if part.startswith("A") else gradient @ a.T)
    gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    assert 0 < len(trained) < len(weights)
    assert_gradients(world, gradients, found, expected_NW, expected)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("verdict_ids", [None, {True: (40, 11, 9), False: (17, 40)}], ids=["own", "ragged"])
def test_verdict_replay_and_tower_backward_are_end_to_end_autograd(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    verdict_ids: dict[bool, tuple[int, ...]] | None,
    packed: bool,
    same: bool,
) -> None:
    """Verdicts of the tokenizer, and some of several tokens; packed, and padded as without a kernel."""
    if not packed:
        monkeypatch.setattr(decoder, "find_backend", lambda *_: None)
    family, opening, tokenizer = world.family, '{"same_species": "', world.family.load_tokenizer()
    if verdict_ids is None:
        verdict_ids = {said: tuple(tokenizer.encode(word)) for said, word in ((True, "yes"), (False, "no"))}
    else:
        ids = tuple(tokenizer.encode(world.prompt_text + opening, add_special_tokens=False))
        forced = ForcedVerdict(ids, verdict_ids)
        monkeypatch.setattr(replay, "force_verdict", lambda *_: forced)

    def losses() -> Iterator[torch.Tensor]:
        p_right, p_wrong = (
            world.log_probs(ids, world.reference(**world.inputs(ids, opening=opening))).sum().double().exp()
            for ids in (verdict_ids[same], verdict_ids[not same])
        )
        yield -(p_right / (p_right + p_wrong)).log() / 3

    expected_NW, expected_tower, expected_loss = gradients_of(world, losses())
    tower, backbone = family.load_tower(), family.load_backbone()
    digest = backbone.digest()
    worker = ReplayWorker(
        backbone, family=family, prompt_text=world.prompt_text, kl_layer=2, verdict_key="same_species"
    )
    pixels = tower.preprocess(world.images)
    values_NW = tower(pixels)
    record = record_of(family, pixels, values_NW)
    task = VerdictTask(ImagePair("p", 0, 1, 0, 0 if same else 1), record, num_pairs_total=3)
    found = worker.replay(task, record)
    values_NW.backward(found.values_NW)
    assert_gradients(world, tower_gradients(tower), found, expected_NW, expected_tower)
    assert found.loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-6)
    assert (found.attention_a_N, found.attention_b_N, found.num_attended) == (None, None, 0)
    assert found.num_tokens == sum(map(len, verdict_ids.values()))
    assert worker.backbone_digest() == digest
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in backbone.parameters())


def test_attention_of_every_layer_is_eager_attention(world: World) -> None:
    """Rows of a ragged group on a shared prefix, padded and packed, against the untouched model's own attention."""
    family, completions = world.family, ((9, 30, 12, 40, 11), (33, 21), (17, 10, 9))
    backbone, tower = family.load_backbone(), family.load_tower()
    pixels = tower.preprocess(world.images)
    prompt_ids = family.load_tokenizer().encode(world.prompt_text, add_special_tokens=False)
    prompt = backbone.build_layout(prompt_ids, pixels.grids)
    sequences = [torch.tensor(completion) for completion in completions]
    padded_GT = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    with torch.no_grad():
        past = backbone.prefill(prompt, tower(pixels), slice(0, len(prompt.token_ids_S)))
        outputs = [world.reference(**world.inputs(each), output_attentions=True) for each in completions]
        for layer in range(backbone.num_layers):
            padded = backbone.forward_completions(past, padded_GT, prompt.next_position, probe_layer=layer).probe
            packed = backbone.forward_packed(past, sequences, prompt.next_position, probe_layer=layer).probe
            assert backbone.supports_packing and padded is not None and packed is not None
            for row, (completion, output) in enumerate(zip(completions, outputs, strict=True)):
                length = len(prompt.token_ids_S) + len(completion)
                expected_RK = output.attentions[layer][0].mean(0)[-len(completion) :]
                for probe in (padded, packed):
                    rows_RK = probe.rows(row, torch.arange(len(completion)))[:, :length]
                    torch.testing.assert_close(rows_RK, expected_RK, rtol=1e-4, atol=1e-6)
                assert expected_RK.std() > 1e-4  # uniform rows would show nothing


# ---------------------------------------------------------------- engines


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, world: World) -> Iterator[Engine]:
    family, text = world.family, world.prompt_text
    if request.param == "transformers":
        yield TransformersEngine(family.load_backbone(), family=family, prompt_text=text, max_model_len=160)
        return
    started = VllmEngine(
        family=family, prompt_text=text, dtype="float32", max_model_len=160, cpu_kv_cache_bytes=64 << 20
    )
    try:
        yield started
    finally:
        started.close()


# An engine of vLLM takes ten seconds to start, so text first is left to slow tests where others hold it: with Qwen3-VL
# `test_engines_apart.py` does, and InternVL's positions are plain counts in either order.
@pytest.mark.parametrize(
    ("family_checkpoint", "world", "engine"),
    [
        *product(FAMILIES, TEXTS, ["transformers"]),
        *(pytest.param(name, "images_first", "vllm", marks=pytest.mark.vllm) for name in FAMILIES),
        pytest.param("qwen2_5_vl", "text_first", "vllm", marks=pytest.mark.vllm),
        pytest.param("qwen3_vl", "text_first", "vllm", marks=[pytest.mark.vllm, pytest.mark.slow]),
        pytest.param("internvl", "text_first", "vllm", marks=[pytest.mark.vllm, pytest.mark.slow]),
    ],
    indirect=True,
)
def test_log_probs_equal_the_pixel_path(engine: Engine, world: World) -> None:
    tower = world.family.load_tower()
    pixels = tower.preprocess(world.images)
    with torch.no_grad():
        record = record_of(world.family, pixels, tower(pixels))
    other = replace(record, pair_id="q", values_NW=record.values_NW.flip(0))
    groups = engine.generate([record, other], [SAMPLING, replace(SAMPLING, max_tokens=5)], deadline_s=300.0)
    for ids, found_T in zip(groups[0].token_ids, groups[0].log_probs, strict=True):
        with torch.no_grad():
            expected_T = world.log_probs(ids, world.reference(**world.inputs(ids)))
        np.testing.assert_allclose(found_T, expected_T, atol=1e-4, rtol=0)
    assert len(set(groups[0].token_ids)) == SAMPLING.num_completions
    # The images matter: other tokens of the same shape give the same request another distribution.
    (again,) = engine.generate([replace(other, pair_id="p")], [SAMPLING], deadline_s=300.0)
    assert abs(again.log_probs[0][0] - groups[0].log_probs[0][0]) > 1e-3 or again.token_ids != groups[0].token_ids
    forbidden = set(world.family.forbidden_token_ids)
    assert not forbidden & {token for group in (*groups, again) for ids in group.token_ids for token in ids}


def test_unfit_tokens_are_refused_before_an_engine_sees_them(world: World) -> None:
    layout = world.family.layout
    pixels = world.family.load_tower().preprocess(world.images)
    good = record_of(world.family, pixels, torch.zeros(50, layout.wire_width))
    wire = {
        "width": layout.width,
        "num_deepstack": layout.num_deepstack,
        "merge_size": layout.merge_size,
        "dtype": torch.float32,
    }
    validate_tokens(good, **wire)
    short = replace(good, values_NW=good.values_NW[1:], lengths=(24, 25))
    wide = replace(good, values_NW=torch.zeros(50, layout.wire_width + layout.width), num_deepstack=0)
    nan = replace(good, values_NW=torch.full((50, layout.wire_width), torch.nan))
    one = replace(good, values_NW=good.values_NW[:25], lengths=(25,), grids=good.grids[:1])
    for record, said in ((short, "24 tokens"), (wide, "token width"), (nan, "NaN"), (one, "1 images")):
        with pytest.raises(TokenError, match=said):
            validate_tokens(record, **wire)
