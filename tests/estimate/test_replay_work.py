"""Replay on paper processes the tokens, operations and bytes that the real replay does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from saga_dist.config import RunConfig, load_config
from saga_dist.data.sampling import evaluation_pairs
from saga_dist.estimate.activations import saved_bytes
from saga_dist.estimate.memory import largest_chunk, replay_memory, rollout_memory
from saga_dist.estimate.operations import group_operations
from saga_dist.estimate.shapes import ModelShape, model_shape
from saga_dist.estimate.token_counts import TokenCounts, count_tokens
from saga_dist.models.families import decoder
from saga_dist.runtime.build import build_learner, build_replay_worker
from saga_dist.types import Completions, ReplayTask, Sampling, ScoredGroup
from saga_dist.workers.engines.vllm_arguments import EngineSize
from saga_dist.workers.replay import ReplayWorker
from saga_dist.workers.replay_chunks import packed_chunks

DEMO = Path(__file__).resolve().parents[2] / "saga_dist" / "standin" / "demo.toml"
SIZE, LENGTH = 8, 45


@dataclass(frozen=True)
class Scene:
    """The demo's model and prompt, and one group of equally long completions."""

    config: RunConfig
    shape: ModelShape
    token_counts: TokenCounts
    worker: ReplayWorker
    task: ReplayTask


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    config = load_config(DEMO, ["data.birds.test_images_per_class=2", "data.birds.probe_images=0"])
    learner = build_learner(config)
    pair = evaluation_pairs(learner.labels("test"), 2, seed=0)[0]
    (tokens,) = learner.encode_pairs("test", [pair])
    ids = np.random.default_rng(0).integers(20, 300, (SIZE, LENGTH)).tolist()
    completions = Completions(
        pair_id=pair.pair_id,
        token_ids=tuple(map(tuple, ids)),
        texts=("",) * SIZE,
        log_probs=(np.full(LENGTH, -1.0, np.float32),) * SIZE,
        finish_reasons=("stop",) * SIZE,
        sampling=Sampling(SIZE, 0.7, 0.95, LENGTH, seed=0),
        encoder_version=0,
    )
    everywhere = (np.ones(LENGTH, dtype=bool),) * SIZE  # so that the last token is read too
    group = ScoredGroup(
        pair=pair,
        completions=completions,
        verdicts=(True,) * SIZE,
        rewards_G=np.array([1, 0] * 4, np.float32),
        is_correct_G=np.array([True, False] * 4),
        advantages_G=np.array([1, -1] * 4, np.float32),
        describes_a=everywhere,
        describes_b=everywhere,
    )
    task = ReplayTask(group, tokens, num_tokens_total=SIZE * LENGTH, want_attention=False)
    worker = build_replay_worker(config)
    worker.replay(task, tokens)  # the constant head is read once
    with model_shape(config) as shape:
        token_counts = replace(count_tokens(config, shape), completion=float(LENGTH))
        yield Scene(config, shape, token_counts, worker, task)


def test_tokens_through_the_layers(scene: Scene) -> None:
    passed = 0

    def count(layer: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        nonlocal passed
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]  # type: ignore[index]
        passed += hidden.shape[0] * hidden.shape[1]

    layer = scene.worker._backbone.language_model.layers[1]  # type: ignore[union-attr, index]
    hook = layer.register_forward_pre_hook(count, with_kwargs=True)  # type: ignore[union-attr]
    scene.worker.replay(scene.task, scene.task.tokens)
    hook.remove()
    assert scene.token_counts.group_prefix == scene.token_counts.prompt - scene.token_counts.common_prefix - 1
    assert passed == scene.token_counts.group_prefix + SIZE * (LENGTH + 1)


def test_operations_by_hand(scene: Scene) -> None:
    """The demo's decoder: 3 layers, 4 heads of 32, 442,368 weights in its layers, 352 x 128 in the output layer."""
    token_counts, decoder = scene.token_counts, scene.shape.decoder
    assert (decoder.layer_matmul_params, decoder.output_matmul_params, decoder.attention_width) == (
        442_368,
        45_056,
        384,
    )
    found = group_operations(decoder, token_counts, SIZE)
    prompt, head = token_counts.prompt, token_counts.common_prefix
    in_prompt = sum(position for position in range(head + 1, prompt + 1))
    in_completions = SIZE * sum(prompt + position for position in range(1, LENGTH + 1))
    assert found.prefill == 2 * 442_368 * (prompt - head) + 4 * 384 * in_prompt
    assert found.decode == SIZE * LENGTH * 2 * (442_368 + 45_056) + 4 * 384 * in_completions
    tokens = token_counts.group_prefix + SIZE * (LENGTH + 1)
    linear = 2 * 442_368 * tokens + 2 * 45_056 * SIZE * LENGTH
    attention = 4 * 384 * (in_prompt + in_completions + SIZE * prompt)
    assert found.replay_forward == linear + attention
    assert found.replay_backward == linear + 2 * attention
    assert found.replay(stale=True) - found.replay(stale=False) == found.replay_forward


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_bytes_that_replay_keeps(scene: Scene, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest completions that the configuration allows; padded as a GPU reads float32."""
    backbone, weights = (
        scene.worker._backbone,
        [*scene.worker._backbone.parameters(), *scene.worker._backbone.buffers()],
    )
    found = replay_memory(with_longest(scene.config, LENGTH), scene.shape, scene.token_counts, on_gpu=not packed)
    if not packed:
        monkeypatch.setattr(decoder, "find_backend", lambda *_: None)
    kept = saved_bytes(lambda: scene.worker.replay(scene.task, scene.task.tokens), weights)
    log_softmax = 4 * SIZE * LENGTH * scene.shape.decoder.vocabulary
    held = found.activations.prefix + found.activations.chunk + found.cache_copies + log_softmax
    assert held == pytest.approx(kept, rel=0.1)
    assert found.logits == 3 * log_softmax
    assert (found.cache_copies > 0) == (not packed)
    assert found.weights == sum(parameter.nbytes for parameter in backbone.parameters())


def test_the_longest_completions_are_budgeted_not_the_mean(scene: Scene) -> None:
    short, long = (
        replay_memory(with_longest(scene.config, length), scene.shape, scene.token_counts, on_gpu=False)
        for length in (LENGTH, 2 * LENGTH)
    )
    assert long.activations.prefix == short.activations.prefix
    assert long.activations.chunk > 1.5 * short.activations.chunk
    assert long.logits == 2 * short.logits
    engine = rollout_memory(with_longest(scene.config, LENGTH), scene.shape, scene.token_counts)
    twice = rollout_memory(with_longest(scene.config, 2 * LENGTH), scene.shape, scene.token_counts)
    assert twice.kv_cache_tokens - engine.kv_cache_tokens == 24 * 8 * LENGTH


@pytest.mark.parametrize(
    ("longest", "completions", "most", "packed", "expected"),
    [
        (1024, 4, 3072, True, [1024] * 3),
        (1000, 8, 3072, True, [1000] * 3 + [72]),
        (1000, 8, 3072, False, [1000] * 3),
        (1000, 2, 3072, True, [1000] * 2),
        (5000, 4, 3072, True, [5000]),
    ],
)
def test_the_largest_chunk(longest: int, completions: int, most: int, packed: bool, expected: list[int]) -> None:
    assert largest_chunk(longest, completions, most, packed=packed) == expected
    if packed:  # no division of completions makes a larger chunk
        lengths = [longest] * (completions - 1) + [expected[-1]]
        assert max(sum(lengths[index] for index in part) for part in packed_chunks(lengths, completions, most)) <= max(
            sum(expected), longest
        )


def with_longest(config: RunConfig, max_tokens: int) -> RunConfig:
    rollout = config.rollout.model_copy(update={"max_tokens": max_tokens})
    return config.model_copy(update={"rollout": rollout})


def test_the_engines_cache_by_hand(scene: Scene) -> None:
    """Keys and values: 2 x 3 layers x 2 heads x 32 x 4 bytes a token."""
    assert scene.shape.decoder.kv_bytes(4) == 1536
    tokens = 128 * 512
    wide = EngineSize.of(scene.shape.family, "float32", context=512, sequences=128)
    half = EngineSize.of(scene.shape.family, "bfloat16", context=512, sequences=256)
    assert wide.on_cpu() == half.on_cpu() == tokens * 1536
    assert wide.weights == 2 * half.weights == 4 * scene.shape.family.files.num_parameters()
