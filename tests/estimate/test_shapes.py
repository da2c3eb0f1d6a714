"""Sizes are those of the modules that training builds, of every family and of released checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from saga_dist.config import RunConfig, load_config
from saga_dist.errors import DataError, ModelError
from saga_dist.estimate.activations import replay_activations, saved_bytes, tower_activations
from saga_dist.estimate.operations import encoder_forward
from saga_dist.estimate.parameters import ParameterCount
from saga_dist.estimate.shapes import model_shape
from saga_dist.estimate.token_counts import count_tokens
from saga_dist.models.families import resolve_family
from saga_dist.models.families.checkpoint_family import CheckpointFamily
from saga_dist.models.trained_part import choose_trained

ROOT = Path(__file__).resolve().parents[2]
BIRDS = ROOT / "configs" / "birds.toml"
IMAGES = 2


def birds(path: Path | str, *overrides: str) -> RunConfig:
    return load_config(BIRDS, [f"model.path={path}", *overrides])


def images(count: int) -> list[np.ndarray]:
    return [np.full((80, 80, 3), 40 * index, np.uint8) for index in range(count)]


def products(module: nn.Module, run: Any) -> int:
    """Multiplications with weights while ``run`` runs, counted where they happen."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()  # type: ignore[operator, union-attr]

    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in linear]
    run()
    for hook in hooks:
        hook.remove()
    return total


def test_every_part_has_the_parameters_of_the_loaded_one(family_checkpoint: Path) -> None:
    family = resolve_family(family_checkpoint)
    assert isinstance(family, CheckpointFamily)
    tower, backbone = family.load_tower(), family.load_backbone()
    with model_shape(birds(family_checkpoint)) as shape:
        assert shape.source == f"config.json of {family_checkpoint}"
        for found, part in ((shape.tower.weights, tower), (shape.decoder.weights, backbone)):
            assert found == ParameterCount(sum(p.numel() for p in part.parameters()), sum(1 for _ in part.parameters()))
        assert (shape.tower.patches, shape.tower.tokens) == (100, 25)
        assert shape.decoder.output_matmul_params == (
            backbone.language_model.embed_tokens.weight.numel()
            if backbone.head is None
            else backbone.head.weight.numel()
        )
        pixels = tower.preprocess(images(IMAGES))
        counted = products(tower, lambda: tower(pixels))
        if not hasattr(tower.model, "vision_tower"):  # Qwen's patch embedding is no module call of its own
            counted += IMAGES * 100 * tower.model.patch_embed.proj.weight.numel()
        linear = shape.tower.patch_matmul_params * 100 + shape.tower.token_matmul_params * 25
        # InternVL's class token passes through its layers too: a hundredth.
        assert counted == pytest.approx(IMAGES * linear, rel=0.011 if shape.family.name == "internvl" else 0)
        assert encoder_forward(shape.tower) == 2 * linear + 4 * shape.tower.attention_macs

        ids_GT = torch.zeros(2, 7, dtype=torch.int64)
        past = backbone.prefill(
            backbone.build_layout([int(family.parsed.image_token_id), 5], [shape.grid]), None, slice(25, 26)
        )
        tokens = ids_GT.numel()
        layers = backbone.language_model.layers
        counted = products(layers, lambda: backbone.forward_completions(past, ids_GT, 26))
        assert counted == shape.decoder.layer_matmul_params * tokens
        keys, values = past[0]
        assert shape.decoder.kv_bytes(4) == len(past) * (keys.nbytes + values.nbytes)


@pytest.mark.parametrize(
    ("train", "autocast"), [("all", False), ("all", True), ("last:1", True), ("last:2", False), ("lora", True)]
)
def test_the_tower_keeps_what_is_said(family_checkpoint: Path, train: str, autocast: bool) -> None:
    config = birds(family_checkpoint, f"model.train={train}")
    tower = resolve_family(family_checkpoint).load_tower()
    choose_trained(tower, config.model, seed=0)
    pixels = tower.preprocess(images(4))

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return tower(pixels)

    kept = saved_bytes(forward, tower.parameters())
    with model_shape(config) as shape:
        found = tower_activations(shape, autocast=autocast)
    # Copies of constant weights in front of the part that trains exist too, though autograd does not keep them.
    copies = 2 * shape.tower.trained.skipped_params if autocast else 0
    assert found.bytes(4) - copies == pytest.approx(kept, rel=0.1)
    assert (found.per_pass.total(found.num_layers) > 0.8 * 2 * shape.tower.weights.params) == autocast
    if train != "last:1":  # of one block, checkpointing spares nothing
        assert found.bytes(4, checkpointing=True) < found.bytes(4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_decoder_keeps_what_is_said(family_checkpoint: Path, dtype: torch.dtype) -> None:
    """On the real modules, with DeepStack maps where the family has them."""
    family = resolve_family(family_checkpoint)
    backbone = family.load_backbone(dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    with model_shape(birds(family_checkpoint, f"model.dtype={name}")) as shape:
        token_counts = count_tokens(birds(family_checkpoint), shape)
        found = replay_activations(shape, prefix=token_counts.prompt - 1, lengths=[12, 1, 9])
        values_NW = torch.zeros(50, shape.wire_width, requires_grad=True)
        ids = [int(shape.family.parsed.image_token_id)] * 2 + [7] * (token_counts.prompt - 50)
        prompt = backbone.build_layout(ids, [shape.grid] * 2)
    past: list[Any] = []
    span = slice(0, token_counts.prompt - 1)
    weights = [*backbone.parameters(), *backbone.buffers()]
    prefix = saved_bytes(lambda: past.append(backbone.prefill(prompt, values_NW, span)), weights)
    leaves = tuple((keys.detach().requires_grad_(), values.detach().requires_grad_()) for keys, values in past[0])
    sequences = [torch.zeros(length, dtype=torch.int64) for length in (12, 1, 9)]
    chunk = saved_bytes(lambda: backbone.forward_packed(leaves, sequences, prompt.next_position), weights)
    assert found.prefix == pytest.approx(prefix, rel=0.1)
    assert found.chunk == pytest.approx(chunk, rel=0.02)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),  # its index file says 16,584,333,312 bytes
    ],
)
def test_released_sizes_without_the_files(name: str, parameters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)  # asking the hub takes half a minute offline
    config = load_config(ROOT / "configs" / "cub.toml", [f"model.path={name}"])
    with model_shape(config) as shape:
        assert shape.tower.weights.params + shape.decoder.weights.params == parameters
        assert "no config.json of it on this machine" in shape.source
        token_counts = count_tokens(config, shape)
        assert "no tokenizer here" in token_counts.prompt_source
        text = {"qwen3_vl": 613, "qwen2_5_vl": 633}[shape.family.name]  # by Qwen's own vocabulary, markers included
        assert token_counts.prompt - 2 * shape.tower.tokens == pytest.approx(text, rel=0.02)


def test_what_cannot_be_sized_is_one_line(tiny_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="no release whose sizes are known") as caught, model_shape(birds("a/b")):
        pass
    assert "\n" not in str(caught.value)
    config = load_config(ROOT / "configs" / "cub.toml", [f"model.path={tiny_checkpoint}", "data.image_size=99"])
    with pytest.raises(DataError, match="data.image_size = 99"), model_shape(config):
        pass
