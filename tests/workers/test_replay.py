"""The crown test: replay plus one backward through the tower is end-to-end autograd through the whole MLLM.

The reference is the untouched Hugging Face model on the pixel path: one full sequence per completion, no cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu.reference_attention import ReferenceAttention

from saga_dist.errors import ModelError, TokenError
from saga_dist.models.families import decoder, resolve_family
from saga_dist.models.families.attention_backends import CpuFlash
from saga_dist.models.families.base import Family, PixelBatch
from saga_dist.models.families.decoder import DecoderBackbone
from saga_dist.types import (
    WEIGHT_QUANTILES,
    Completions,
    EncoderTokens,
    ImagePair,
    ReplayTask,
    Sampling,
    ScoredGroup,
    TokenGradients,
)
from saga_dist.workers import replay, replay_chunks
from saga_dist.workers.replay import ReplayWorker

LENGTHS = (5, 11, 8, 1, 9)
REWARDS = (1, 0, 1, 0, 1)
DESCRIBED_A = (slice(0, 2), slice(0, 2), slice(1, 4), slice(0, 0), slice(2, 2))
"""Completion 4 is right but describes no image a: it has no target."""
DESCRIBED_B = (slice(2, 5), slice(3, 6), slice(4, 8), slice(0, 1), slice(3, 6))
"""Completion 0 describes image b up to its very last token."""
KL_LAYER = 1


@dataclass
class World:
    """One checkpoint, loaded twice: by the package and, untouched, by transformers."""

    folder: Path
    family: Family
    prompt_text: str
    reference: Any
    pairs: list[list[np.ndarray]]

    def groups(self) -> list[ScoredGroup]:
        vocabulary = self.reference.config.text_config.vocab_size
        return [_group(f"p{index}", vocabulary, seed=index) for index in range(len(self.pairs))]


def _world(folder: Path, *, text_first: bool = False, sizes: tuple[int, int] = (80, 80)) -> World:
    from transformers import Qwen3VLForConditionalGeneration

    family = resolve_family(folder)
    image = family.image_placeholder
    body = f"Which is which? Bird 1: {image} Bird 2: {image}" if text_first else f"{image} and {image}: same species?"
    prompt_text = family.chat_format.before_user + body + family.chat_format.after_user
    reference = Qwen3VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    rng = np.random.default_rng(5)
    pairs = [[rng.integers(0, 256, (size, 80, 3), dtype=np.uint8) for size in sizes] for _ in range(2)]
    return World(folder, family, prompt_text, reference.eval(), pairs)


def _group(pair_id: str, vocabulary: int, *, seed: int) -> ScoredGroup:
    rng = np.random.default_rng(seed)
    ids = tuple(tuple(int(token) for token in rng.integers(8, vocabulary, length)) for length in LENGTHS)
    rewards_G = np.array(REWARDS, np.float32)
    completions = Completions(
        pair_id=pair_id,
        token_ids=ids,
        texts=("",) * len(ids),
        log_probs=tuple(np.zeros(length, np.float32) for length in LENGTHS),
        finish_reasons=("stop",) * len(ids),
        sampling=Sampling(len(ids), 1.0, 1.0, 16, seed),
        encoder_version=3,
    )

    def masks(spans: tuple[slice, ...]) -> tuple[np.ndarray, ...]:
        filled = [np.zeros(length, bool) for length in LENGTHS]
        for mask_T, span in zip(filled, spans, strict=True):
            mask_T[span] = True
        return tuple(filled)

    return ScoredGroup(
        pair=ImagePair(pair_id, 0, 1, 0, 0),
        completions=completions,
        verdicts=tuple(reward == 1 for reward in REWARDS),
        rewards_G=rewards_G,
        is_correct_G=rewards_G == 1,
        advantages_G=(rewards_G - rewards_G.mean()) / rewards_G.std(ddof=1),
        describes_a=masks(DESCRIBED_A),
        describes_b=masks(DESCRIBED_B),
    )


def _record(group: ScoredGroup, pixels: PixelBatch, values_NW: torch.Tensor, num_deepstack: int) -> EncoderTokens:
    return EncoderTokens(
        pair_id=group.pair.pair_id,
        values_NW=values_NW.detach(),
        lengths=pixels.lengths,
        grids=pixels.grids,
        num_deepstack=num_deepstack,
        encoder_version=3,
    )


def _worker(world: World, *, dtype: torch.dtype = torch.float32, **settings: Any) -> ReplayWorker:
    backbone = world.family.load_backbone(dtype=dtype)
    return ReplayWorker(backbone, family=world.family, prompt_text=world.prompt_text, kl_layer=KL_LAYER, **settings)


def _replayed(
    world: World, *, dtype: torch.dtype = torch.float32, want_attention: bool = True, **settings: Any
) -> tuple[list[TokenGradients], dict[str, torch.Tensor]]:
    """Token gradients of every pair, and tower gradients after one backward through the tower."""
    worker = _worker(world, dtype=dtype, **settings)
    tower = world.family.load_tower()
    groups = world.groups()
    total = sum(group.num_tokens for group in groups)
    results = []
    for group, images in zip(groups, world.pairs, strict=True):
        pixels = tower.preprocess(images)
        values_NW = tower(pixels)
        record = _record(group, pixels, values_NW.to(dtype), tower.layout.num_deepstack)
        results.append(worker.replay(ReplayTask(group, record, total, want_attention), record))
        values_NW.backward(results[-1].values_NW)
    return results, {name: parameter.grad for name, parameter in tower.model.named_parameters()}


@dataclass
class Reference:
    token_gradients: list[torch.Tensor]
    tower_gradients: dict[str, torch.Tensor]
    losses: list[float]
    attention: list[tuple[torch.Tensor, torch.Tensor, float, int]]
    log_probs: list[list[torch.Tensor]]


def _sampling_log_prob(
    logits_V: torch.Tensor, token: int, sampling: Sampling, forbidden: Sequence[int]
) -> torch.Tensor:
    """Token by token: the most likely ones until top-p is reached, renormalised; no forbidden ones."""
    allowed_V = torch.ones_like(logits_V)
    allowed_V[list(forbidden)] = 0
    probs_V = (logits_V / sampling.temperature).exp() * allowed_V
    probs_V = probs_V / probs_V.sum()
    kept, mass = [], 0.0
    for index in probs_V.argsort(descending=True).tolist():
        if mass >= sampling.top_p:
            break
        kept.append(index)
        mass += probs_V[index].item()
    kept += [] if token in kept else [token]
    return (probs_V[token] / probs_V[kept].sum()).log()


def _end_to_end(world: World, *, at_sampling: bool = False) -> Reference:
    """Plain autograd: pixels in, loss out, one full forward per completion."""
    model = world.reference
    model.zero_grad(set_to_none=True)
    processor = world.family.load_tower()
    tokenizer = world.family.load_tokenizer()
    groups = world.groups()
    total = sum(group.num_tokens for group in groups)
    result = Reference([], {}, [], [], [])
    for group, images in zip(groups, world.pairs, strict=True):
        pixels = processor.preprocess(images)
        text = world.prompt_text
        for length in pixels.lengths:
            text = text.replace("<|image_pad|>", "<|expanded|>" * length, 1)
        prompt = tokenizer.encode(text.replace("<|expanded|>", "<|image_pad|>"), add_special_tokens=False)
        grids_I3 = torch.tensor(pixels.grids)
        loss = torch.zeros(())
        tokens: list[torch.Tensor] = []

        def keep(module: Any, args: Any, output: Any, tokens: list[torch.Tensor] = tokens) -> None:
            for tensor in (output.pooler_output, *output.deepstack_features):
                tensor.retain_grad()
                tokens.append(tensor)

        hook = model.model.visual.register_forward_hook(keep)
        targets, all_log_probs = [], []
        for index, completion in enumerate(group.completions.token_ids):
            ids_1S = torch.tensor([prompt + list(completion)])
            output = model(
                input_ids=ids_1S,
                pixel_values=pixels.pixel_values,
                image_grid_thw=grids_I3,
                mm_token_type_ids=(ids_1S == model.config.image_token_id).int(),
                output_attentions=True,
            )
            log_probs_SV = output.logits[0].float().log_softmax(-1)
            positions = range(len(prompt) - 1, len(prompt) - 1 + len(completion))
            log_probs_T = torch.stack([log_probs_SV[p, y] for p, y in zip(positions, completion, strict=True)])
            if at_sampling:
                drawn, forbidden = group.completions.sampling, world.family.forbidden_token_ids
                log_probs_T = torch.stack(
                    [
                        _sampling_log_prob(log_probs_SV[p], y, drawn, forbidden)
                        for p, y in zip(positions, completion, strict=True)
                    ]
                )
            all_log_probs.append(log_probs_T.detach())
            loss = loss - float(group.advantages_G[index]) * log_probs_T.sum() / total
            masks = group.describes_a[index], group.describes_b[index]
            if group.rewards_G[index] == 1 and masks[0].any() and masks[1].any():
                attention_SS = output.attentions[KL_LAYER][0].detach().mean(0)
                targets.append(_targets(attention_SS, ids_1S[0] == model.config.image_token_id, masks, len(prompt)))
        hook.remove()
        loss.backward()
        parts = [
            sum(tensor.grad for tensor in tokens[level :: len(tokens) // len(LENGTHS)])
            for level in range(len(tokens) // len(LENGTHS))
        ]
        result.token_gradients.append(torch.cat(parts, dim=1))
        result.losses.append(loss.item())
        entropy = np.mean([sum((alpha * alpha.log()).sum().item() for alpha in pair) for pair in targets])
        means = [torch.stack([pair[image] for pair in targets]).mean(0) for image in range(2)]
        result.attention.append((means[0], means[1], float(entropy), len(targets)))
        result.log_probs.append(all_log_probs)
    result.tower_gradients = {name: parameter.grad for name, parameter in model.model.visual.named_parameters()}
    return result


def _targets(
    attention_SS: torch.Tensor, image_mask_S: torch.Tensor, masks: tuple[np.ndarray, np.ndarray], num_prompt: int
) -> list[torch.Tensor]:
    """Eq. 6 by hand: rows of the describing tokens, this image's columns, renormalised, mean over tokens."""
    columns = image_mask_S.nonzero()[:, 0].tolist()
    jump = next(i for i in range(1, len(columns)) if columns[i] != columns[i - 1] + 1)
    result = []
    for image_columns, mask_T in zip((columns[:jump], columns[jump:]), masks, strict=True):
        rows = [attention_SS[num_prompt + t, image_columns] for t in np.flatnonzero(mask_T)]
        result.append(sum(row / row.sum() for row in rows) / len(rows))
    return result


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def _checkpoint(folder: Path, **sizes: Any) -> Path:
    """A random model with layers four times as strong as usual, so that attention and MLPs matter to the result."""
    from safetensors.torch import load_file, save_file

    from saga_dist.standin.checkpoint import write_random_checkpoint

    write_random_checkpoint(folder, seed=3, **sizes)
    tensors = load_file(folder / "model.safetensors")
    scaled = {
        name: 4 * tensor if tensor.ndim == 2 and ("layers." in name or "blocks." in name) else tensor
        for name, tensor in tensors.items()
    }
    save_file(scaled, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def deep_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two DeepStack levels and a tower of three layers."""
    return _world(_checkpoint(tmp_path_factory.mktemp("deep"), tower_depth=3, deepstack=(0, 2), layers=4))


@pytest.fixture(scope="module")
def deep_reference(deep_world: World) -> Reference:
    return _end_to_end(deep_world)


def _assert_equal(
    results: list[TokenGradients], tower: dict[str, torch.Tensor], reference: Reference, levels: int
) -> None:
    for found, expected, loss in zip(results, reference.token_gradients, reference.losses, strict=True):
        assert found.values_NW.dtype == torch.float32
        assert found.values_NW.shape == expected.shape
        for part, expected_part in zip(
            found.values_NW.chunk(levels + 1, 1), expected.chunk(levels + 1, 1), strict=True
        ):
            assert expected_part.norm() > 0
            assert _relative_error(part, expected_part) <= 1e-5
        assert found.loss == pytest.approx(loss, rel=1e-5, abs=1e-7)
    assert tower.keys() == reference.tower_gradients.keys()
    # Biases of keys have no gradient but rounding (softmax ignores a shift): measured against the whole tower there.
    scale = torch.stack([gradient.norm() for gradient in reference.tower_gradients.values()]).norm().item()
    for name, expected in reference.tower_gradients.items():
        assert (tower[name] - expected).norm().item() <= 1e-5 * max(expected.norm().item(), 1e-2 * scale), name


BACKENDS = {"packed": CpuFlash(), "padded": None, "reference": ReferenceAttention()}


@pytest.fixture(params=BACKENDS)
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How groups are read: packed as on a CPU, padded as without a kernel, packed with the kernels' reference."""
    monkeypatch.setattr(decoder, "find_backend", lambda *_: BACKENDS[request.param])
    return str(request.param)


def test_replay_and_tower_backward_are_end_to_end_autograd_with_two_deepstack_levels(
    deep_world: World, deep_reference: Reference, layout: str
) -> None:
    results, tower = _replayed(deep_world)
    _assert_equal(results, tower, deep_reference, levels=2)
    _assert_attention(results, deep_reference)


def test_replay_and_tower_backward_are_end_to_end_autograd_on_the_stand_in_shape(tiny_checkpoint: Path) -> None:
    world = _world(tiny_checkpoint)
    results, tower = _replayed(world)
    _assert_equal(results, tower, _end_to_end(world), levels=1)


def test_text_first_prompts_and_images_of_different_sizes_are_exact_too(tmp_path: Path, layout: str) -> None:
    world = _world(_checkpoint(tmp_path / "model", tower_depth=2, deepstack=(0, 1)), text_first=True, sizes=(48, 80))
    results, tower = _replayed(world, completions_per_chunk=2)
    reference = _end_to_end(world)
    _assert_equal(results, tower, reference, levels=2)
    _assert_attention(results, reference)


def test_log_probs_of_the_sampling_distribution_are_end_to_end_autograd_too(
    deep_world: World, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """With half of the mass, many tokens of random completions are outside, and are kept all the same."""
    plain = deep_world.groups()
    drawn = [replace(group.completions, sampling=Sampling(5, 0.8, 0.5, 16, 0)) for group in plain]
    groups = [replace(group, completions=one) for group, one in zip(plain, drawn, strict=True)]
    monkeypatch.setattr(World, "groups", lambda _: groups)
    results, tower = _replayed(deep_world, policy="sampling", logits_chunk=4)
    reference = _end_to_end(deep_world, at_sampling=True)
    _assert_equal(results, tower, reference, levels=2)
    found = results[0].mismatch.replayed
    for one_T, expected_T in zip(found, reference.log_probs[0], strict=True):
        assert np.allclose(one_T, expected_T.numpy(), atol=1e-5)


@pytest.mark.parametrize(("completions", "logits"), [(1, 1024), (2, 7), (5, 1)])
def test_chunks_change_nothing(deep_world: World, deep_reference: Reference, completions: int, logits: int) -> None:
    results, tower = _replayed(deep_world, completions_per_chunk=completions, logits_chunk=logits)
    _assert_equal(results, tower, deep_reference, levels=2)
    _assert_attention(results, deep_reference)


def test_completions_of_very_different_lengths_run_apart_and_change_nothing(
    deep_world: World, deep_reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "find_backend", lambda *_: None)
    monkeypatch.setattr(replay_chunks, "MAX_PADDING", 2)
    assert replay_chunks.padded_chunks(LENGTHS, 8, 99) == [[1, 4], [2], [0], [3]]
    assert replay_chunks.padded_chunks((3, 3, 2, 3, 3), 2, 99) == [[0, 1], [3, 4], [2]]
    assert replay_chunks.padded_chunks((3, 4, 2, 4, 12), 8, 8) == [[4], [1, 3], [0, 2]]
    results, tower = _replayed(deep_world)
    _assert_equal(results, tower, deep_reference, levels=2)
    _assert_attention(results, deep_reference)


def test_packed_chunks_hold_so_many_completions_and_so_many_tokens(
    deep_world: World, deep_reference: Reference
) -> None:
    assert replay_chunks.packed_chunks((3, 3, 4, 11, 1, 1, 1), 2, 10) == [[0, 1], [2], [3], [4, 5], [6]]
    assert replay_chunks.packed_chunks(LENGTHS, 8, 10) == [[0], [1], [2, 3], [4]]
    group = deep_world.groups()[0]
    worker = _worker(deep_world, tokens_per_chunk=10)
    prompt = worker._prompt._layout(((1, 10, 10), (1, 10, 10)))
    assert [chunk.lengths for chunk in worker._chunks(group, prompt)] == [(5,), (11,), (8, 1), (9,)]
    results, tower = _replayed(deep_world, tokens_per_chunk=10)
    _assert_equal(results, tower, deep_reference, levels=2)


def _with_copies(group: ScoredGroup) -> ScoredGroup:
    """Completion 1 becomes completion 0's twin and 4 that of 2: same tokens, same verdict; others differ."""
    twins = (0, 0, 2, 3, 2)

    def pick(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[twin] for twin in twins)

    completions = replace(
        group.completions,
        token_ids=pick(group.completions.token_ids),
        log_probs=tuple(np.full(LENGTHS[twin], -0.1 * row, np.float32) for row, twin in enumerate(twins)),
    )
    rewards_G = np.array(REWARDS, np.float32)[list(twins)]
    return replace(
        group,
        completions=completions,
        verdicts=pick(group.verdicts),
        rewards_G=rewards_G,
        is_correct_G=rewards_G == 1,
        advantages_G=np.array((0.5, -1.0, 0.25, 2.0, 1.5), np.float32),
        describes_a=pick(group.describes_a),
        describes_b=pick(group.describes_b),
    )


@pytest.mark.parametrize("truncate_at", [None, 1.05])
def test_equal_completions_are_read_once_and_count_each(
    deep_world: World, monkeypatch: pytest.MonkeyPatch, layout: str, truncate_at: float | None
) -> None:
    """Against the same worker made to read every completion; copies differ in advantage and engine log-probability."""
    group = _with_copies(deep_world.groups()[0])
    tower = deep_world.family.load_tower()
    pixels = tower.preprocess(deep_world.pairs[0])
    record = _record(group, pixels, tower(pixels), tower.layout.num_deepstack)
    task = ReplayTask(group, record, 100, True, truncate_at=truncate_at)
    read: list[int] = []
    forward_packed = DecoderBackbone.forward_packed

    def counted(self: DecoderBackbone, past: Any, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(len(sequences))
        return forward_packed(self, past, sequences, *args, **kwargs)

    monkeypatch.setattr(DecoderBackbone, "forward_packed", counted)
    found = _worker(deep_world, logits_chunk=7).replay(task, record)
    assert sum(read) == 3
    monkeypatch.setattr(replay, "distinct_completions", lambda token_ids: [[index] for index in range(len(token_ids))])
    expected = _worker(deep_world, logits_chunk=7).replay(task, record)
    assert sum(read) == 3 + 5
    assert _relative_error(found.values_NW, expected.values_NW) <= 1e-5
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.num_attended == expected.num_attended == 4
    torch.testing.assert_close(found.attention_a_N, expected.attention_a_N, rtol=1e-5, atol=1e-7)
    assert found.mismatch.log_prob_gap == pytest.approx(expected.mismatch.log_prob_gap, rel=1e-5)
    assert found.mismatch.weight_quantiles == pytest.approx(expected.mismatch.weight_quantiles, rel=1e-5)


def test_replay_is_deterministic(deep_world: World) -> None:
    first, _ = _replayed(deep_world, completions_per_chunk=2)
    second, _ = _replayed(deep_world, completions_per_chunk=2)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.values_NW, other.values_NW)
        assert one.loss == other.loss


def _assert_attention(results: list[TokenGradients], reference: Reference) -> None:
    for found, (mean_a, mean_b, entropy, count) in zip(results, reference.attention, strict=True):
        assert found.num_attended == count == 2
        torch.testing.assert_close(found.attention_a_N, mean_a, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found.attention_b_N, mean_b, rtol=1e-5, atol=1e-7)
        assert found.negative_entropy == pytest.approx(entropy, rel=1e-5)


def test_attention_targets_are_those_of_eager_attention(deep_world: World, deep_reference: Reference) -> None:
    results, _ = _replayed(deep_world)
    _assert_attention(results, deep_reference)
    assert results[0].attention_a_N.sum().item() == pytest.approx(1, abs=1e-6)


def test_targets_are_of_correct_completions_whatever_their_reward(deep_world: World) -> None:
    worker, tower = _worker(deep_world), deep_world.family.load_tower()
    group, pixels = deep_world.groups()[0], tower.preprocess(deep_world.pairs[0])
    record = _record(group, pixels, tower(pixels), tower.layout.num_deepstack)

    def replayed(**changes: Any) -> TokenGradients:
        task = ReplayTask(replace(group, **changes), record, group.num_tokens, want_attention=True)
        return worker.replay(task, record)

    by_reward, partial_credit = replayed(), replayed(rewards_G=np.array([0.3, 1, -2, 0, 7], np.float32))
    assert partial_credit.num_attended == by_reward.num_attended > 1
    assert torch.equal(partial_credit.attention_a_N, by_reward.attention_a_N)
    one = replayed(is_correct_G=np.arange(len(LENGTHS)) == int(np.flatnonzero(group.is_correct_G)[0]))
    assert one.num_attended == 1
    assert not torch.allclose(one.attention_a_N, by_reward.attention_a_N)
    none = replayed(is_correct_G=np.zeros(len(LENGTHS), bool))
    assert (none.num_attended, none.attention_a_N, none.attention_b_N) == (0, None, None)
    assert torch.equal(none.values_NW, by_reward.values_NW), "the policy gradient knows advantages only"


def test_no_attention_is_read_unless_wanted(deep_world: World) -> None:
    results, _ = _replayed(deep_world, want_attention=False)
    assert all(result.attention_a_N is None and result.attention_b_N is None for result in results)
    assert all(result.num_attended == 0 for result in results)


def test_the_gap_to_the_engine_is_the_mean_absolute_difference(deep_world: World, deep_reference: Reference) -> None:
    # The engine log-probabilities of the groups above are zeros, so the gap is the mean magnitude.
    results, _ = _replayed(deep_world, completions_per_chunk=3)
    for found, log_probs in zip(results, deep_reference.log_probs, strict=True):
        assert found.mismatch.log_prob_gap == pytest.approx(torch.cat(log_probs).abs().mean().item(), rel=1e-5)
        for mine, theirs in zip(found.mismatch.replayed, log_probs, strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-4, atol=1e-5)


def _log_probs_by_hand(world: World, group: ScoredGroup, pixels: list[np.ndarray], temperature: float) -> torch.Tensor:
    """Log-probabilities of a group's tokens at a temperature, by the untouched model on pixels, one after the other."""
    worker, tower = _worker(world), world.family.load_tower()
    batch = tower.preprocess(pixels)
    record = _record(group, batch, tower(batch), tower.layout.num_deepstack)
    prompt, values_NW = worker._prompt.load(record)
    found = []
    for ids in group.completions.token_ids:
        prefix = worker._prompt.keys_and_values(prompt, values_NW)
        inputs = torch.tensor([[int(prompt.token_ids_S[-1]), *ids]])
        hidden = worker._backbone.forward_completions(prefix, inputs, prompt.next_position - 1).hidden_GTD[0, :-1]
        log_probs_TV = torch.log_softmax(worker._backbone.logits(hidden).double() / temperature, -1)
        found.append(log_probs_TV.gather(1, torch.tensor(ids)[:, None])[:, 0])
    return torch.cat(found).detach()


@pytest.mark.parametrize("logits_chunk", [4, 1024])
def test_stale_groups_weigh_by_the_tempered_ratio_and_the_cut(deep_world: World, logits_chunk: int) -> None:
    """Today's tokens are image pair 0's, the group was sampled from those of pair 1: w = p_today / p_old at T = 0.7."""
    group = deep_world.groups()[0]
    group = replace(
        group, completions=replace(group.completions, sampling=replace(group.completions.sampling, temperature=0.7))
    )
    tower = deep_world.family.load_tower()
    records = []
    for version, pair in enumerate(deep_world.pairs):
        pixels = tower.preprocess(pair)
        records.append(replace(_record(group, pixels, tower(pixels), 2), encoder_version=version))
    today, old = records
    worker = _worker(deep_world, completions_per_chunk=2, logits_chunk=logits_chunk)
    found = worker.replay(ReplayTask(group, today, 100, False, behaviour=old, truncate_at=1.01), today, old)

    now, then = (_log_probs_by_hand(deep_world, group, pair, 0.7) for pair in deep_world.pairs)
    ratio = (now - then).exp()
    assert (ratio - 1).abs().max() > 0.01, "the two encoders differ"
    expected = torch.quantile(ratio, torch.tensor(WEIGHT_QUANTILES, dtype=torch.float64))
    torch.testing.assert_close(torch.tensor(found.mismatch.weight_quantiles).double(), expected, rtol=1e-4, atol=1e-5)
    assert found.mismatch.truncated_share == pytest.approx((ratio > 1.01).double().mean().item())
    plain = _log_probs_by_hand(deep_world, group, deep_world.pairs[0], 1.0)
    advantages = np.repeat(group.advantages_G, [len(ids) for ids in group.completions.token_ids])
    loss = -(torch.from_numpy(advantages) * ratio.clamp(max=1.01) * plain).sum() / 100
    assert found.loss == pytest.approx(loss.item(), rel=1e-4)
    # What the engine computes differently is measured where it sampled: on the old tokens.
    behaviour = _log_probs_by_hand(deep_world, group, deep_world.pairs[1], 1.0)
    assert found.mismatch.log_prob_gap == pytest.approx(behaviour.abs().mean().item(), rel=1e-4)
    assert found.mismatch.mismatch_kl == pytest.approx((behaviour.exp() - 1 - behaviour).mean().item(), rel=1e-4)
    np.testing.assert_allclose(np.concatenate(found.mismatch.replayed), behaviour.numpy(), rtol=1e-4, atol=1e-5)


def test_weights_of_one_change_nothing(deep_world: World) -> None:
    """Weights of 1 give the gradient without weights, others another one; without a weight nothing is reported."""
    group = deep_world.groups()[0]
    tower = deep_world.family.load_tower()
    pixels = [tower.preprocess(pair) for pair in deep_world.pairs]
    today, old = (_record(group, each, tower(each), 2) for each in pixels)
    worker = _worker(deep_world)
    on_policy = worker.replay(ReplayTask(group, today, 100, False), today)
    same = worker.replay(ReplayTask(group, today, 100, False, behaviour=today, truncate_at=2.0), today, today)
    torch.testing.assert_close(same.values_NW, on_policy.values_NW, rtol=1e-5, atol=1e-9)
    assert same.mismatch.weight_quantiles == pytest.approx((1.0,) * len(WEIGHT_QUANTILES), abs=1e-5)
    assert on_policy.mismatch.weight_quantiles == ()
    capped = worker.replay(ReplayTask(group, today, 100, False, behaviour=old, truncate_at=1e-9 + 1.0), today, old)
    assert not torch.allclose(capped.values_NW, on_policy.values_NW, rtol=1e-3)


def test_bfloat16_points_the_same_way(deep_world: World, deep_reference: Reference) -> None:
    results, _ = _replayed(deep_world, dtype=torch.bfloat16)
    for found, expected in zip(results, deep_reference.token_gradients, strict=True):
        for part, expected_part in zip(found.values_NW.chunk(3, 1), expected.chunk(3, 1), strict=True):
            assert torch.cosine_similarity(part.flatten(), expected_part.flatten(), dim=0) >= 0.999


def test_the_backbone_is_untouched(deep_world: World) -> None:
    worker = _worker(deep_world)
    before = worker.backbone_digest()
    tower = deep_world.family.load_tower()
    group = deep_world.groups()[0]
    pixels = tower.preprocess(deep_world.pairs[0])
    record = _record(group, pixels, tower(pixels), tower.layout.num_deepstack)
    worker.replay(ReplayTask(group, record, 100, True), record)
    assert worker.backbone_digest() == before
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in worker._backbone.parameters())


def test_wrong_tokens_and_a_wrong_layer_are_refused(deep_world: World) -> None:
    group = deep_world.groups()[0]
    tower = deep_world.family.load_tower()
    pixels = tower.preprocess(deep_world.pairs[0])
    record = _record(group, pixels, tower(pixels), tower.layout.num_deepstack)
    narrow = replace(record, values_NW=record.values_NW[:, : 2 * tower.layout.width], num_deepstack=1)
    with pytest.raises(TokenError, match=r"token width 256 with 1 DeepStack levels; expected 384"):
        _worker(deep_world).replay(ReplayTask(group, narrow, 100, False), narrow)
    with pytest.raises(ModelError, match=r"objective.kl_layer = 9; expected a layer below 4"):
        ReplayWorker(
            deep_world.family.load_backbone(),
            family=deep_world.family,
            prompt_text=deep_world.prompt_text,
            kl_layer=9,
        )
