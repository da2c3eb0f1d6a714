"""Bytes on paper are those of a real step: optimizer state, checkpoint, what goes over the wire."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from saga_dist.config import RunConfig, load_config
from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.estimate.activations import saved_bytes
from saga_dist.estimate.data import data_shape
from saga_dist.estimate.memory import learner_memory
from saga_dist.estimate.parameters import ParameterCount
from saga_dist.estimate.payloads import checkpoint_bytes, disk_bytes, payloads
from saga_dist.estimate.sampling import dynamic_sampling
from saga_dist.estimate.shapes import model_shape
from saga_dist.estimate.token_counts import count_tokens
from saga_dist.models.trained_part import trained_parameters
from saga_dist.runtime.build import build_learner
from saga_dist.wire import gradients_to_batch, tokens_to_batch
from saga_dist.workers.learner import Learner

ROOT = Path(__file__).resolve().parents[2]
PROXIES = ["objective.metric_loss=potential_field", "objective.metric_params={proxies_per_class = 3}"]
FEW = ["data.birds.val_images_per_class=2", "data.birds.test_images_per_class=2", "data.birds.probe_images=0"]


def stepped(config: RunConfig) -> tuple[Learner, list[object]]:
    """A learner after one real step, and the payloads of its batch."""
    learner = build_learner(config)
    sampler = ClassBalancedSampler(
        learner.labels("train"), config.data.batch_size, config.data.images_per_class, seed=0
    )
    encoded = learner.encode(sampler.micro_batch(0, 0, config.rollout.pairs_per_batch))
    learner.finish_step([])
    return learner, list(encoded.handles)


@pytest.mark.parametrize(
    "overrides",
    [
        PROXIES,
        ["objective.metric_loss=proxy_anchor"],
        ["model.pooler=mean", "objective.lambda_kl=0"],
        ["model.train=last:1"],
        ["model.train=lora", "model.lora_rank=4"],
    ],
)
def test_optimizer_and_checkpoint(overrides: list[str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "birds.toml", [f"model.path={tiny_checkpoint}", *FEW, *overrides])
    learner, _ = stepped(config)
    state = learner.optimizer.state_dict()["state"]
    parts = (learner.encoder.tower, learner.encoder.pooler, learner.metric_loss)
    with model_shape(config) as shape:
        found = learner_memory(config, shape, data_shape(config), on_gpu=False, replay=None)
    pooler, proxies = map(ParameterCount.of, parts[1:])
    assert (found.pooler, found.proxies) == (pooler, proxies)
    whole = ParameterCount.of(parts[0]).params
    assert found.tower.params + found.trained.added == whole
    trained = trained_parameters(parts[0])
    assert found.trained.weights == ParameterCount(sum(p.numel() for p in trained), len(trained))
    assert (found.trained.weights.params < whole) == ("model.train" in overrides[0])
    assert found.weights == sum(parameter.nbytes for part in parts for parameter in part.parameters())
    assert found.optimizer == sum(tensor.nbytes for entry in state.values() for tensor in entry.values())
    learner.save(tmp_path)
    on_disk = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert on_disk == pytest.approx(checkpoint_bytes(found), rel=0.05, abs=20_000)  # the rest is names
    deployed = 4 * (found.tower.params + found.pooler.params)
    assert disk_bytes(config, found) == (3 + 1 + 1) * checkpoint_bytes(found) + deployed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_payloads_are_those_on_the_wire(dtype: str, family_checkpoint: Path) -> None:
    config = load_config(
        ROOT / "configs" / "birds.toml",
        [f"model.path={family_checkpoint}", f"model.dtype={dtype}", "replay.workers=1", *FEW],
    )
    _, records = stepped(config)
    real = [tokens_to_batch(record).nbytes for record in records]  # type: ignore[arg-type]
    with model_shape(config) as shape:
        token_counts, needed = count_tokens(config, shape), dynamic_sampling(config, 0.5)
        found = payloads(config, shape, token_counts, needed)
        values = 2 * shape.tower.tokens * shape.wire_width
    assert set(real) == {found.tokens}
    assert 0 < found.tokens - values * shape.value_bytes < 300
    assert 0 < found.gradients - 4 * values - 2 * 4 * shape.tower.tokens < 300
    assert needed.micro_batches_mean == 1
    expected = 16 * (found.tokens + found.group) + needed.trained_groups * found.gradients
    assert found.step == found.store_peak == round(expected)
    assert found.recording(config, needed) == 40 * 16 * found.group


def test_running_ahead_keeps_a_second_copy(tiny_checkpoint: Path) -> None:
    config = load_config(
        ROOT / "configs" / "birds.toml", [f"model.path={tiny_checkpoint}", "rollout.max_staleness=1", *FEW]
    )
    with model_shape(config) as shape:
        found = payloads(config, shape, count_tokens(config, shape), dynamic_sampling(config))
    assert found.step == found.store_peak == 16 * (2 * found.tokens + found.group)


def test_gradients_travel_in_float32(tiny_checkpoint: Path) -> None:
    from saga_dist.estimate import payloads as module

    config = load_config(ROOT / "configs" / "birds.toml", [f"model.path={tiny_checkpoint}", *FEW])
    _, records = stepped(config)
    record = module._gradients(records[0])  # type: ignore[arg-type]
    assert gradients_to_batch(record).column("values").nbytes >= 4 * record.values_NW.numel()


def test_counting_keeps_nothing() -> None:
    layer = torch.nn.Linear(8, 16)
    held: list[weakref.ref[torch.Tensor]] = []

    def forward() -> torch.Tensor:
        # Of sigmoid the graph keeps the output itself.
        output = torch.sigmoid(layer(torch.ones(4, 8)))
        held.append(weakref.ref(output))
        return output

    assert saved_bytes(forward, layer.parameters()) == 4 * (4 * 8 + 4 * 16)
    assert held[0]() is None
