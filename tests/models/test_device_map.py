"""A decoder spread over devices gives what it gives on one: tokens' gradients, logits, attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saga_dist.config import parse_config
from saga_dist.errors import ConfigError, ModelError
from saga_dist.models.device_map import distribute_layers
from saga_dist.models.families import resolve_family
from saga_dist.models.families.base import FrozenBackbone
from saga_dist.runtime.devices import replay_devices

CPU = torch.device("cpu")
GRIDS = ((1, 10, 10), (1, 8, 6))


def run(checkpoint: Path, backbone: FrozenBackbone) -> list[torch.Tensor]:
    """Gradient at the encoder tokens (DeepStack included), logits, and one layer's attention."""
    family = resolve_family(checkpoint)
    text = f"a {family.image_placeholder} b {family.image_placeholder} c?"
    prompt = backbone.build_layout(family.load_tokenizer().encode(text, add_special_tokens=False), GRIDS)
    generator = torch.Generator().manual_seed(0)
    values_NW = torch.randn(37, family.layout.wire_width, generator=generator).to(backbone.device).requires_grad_()
    past = backbone.prefill(prompt, values_NW, slice(0, len(prompt.token_ids_S)))
    token_ids_GT = torch.randint(8, 300, (3, 6), generator=generator).to(backbone.device)
    ran = backbone.forward_completions(past, token_ids_GT, prompt.next_position, probe_layer=backbone.num_layers - 1)
    logits_RV = backbone.logits(ran.hidden_GTD.flatten(0, 1))
    logits_RV.log_softmax(-1).square().mean().backward()
    assert ran.probe is not None
    assert values_NW.grad is not None
    rows = ran.probe.rows(1, torch.tensor([2, 5], device=backbone.device))
    assert {tensor.device for tensor in (logits_RV, rows, values_NW.grad)} == {backbone.device}
    return [values_NW.grad.cpu(), logits_RV.detach().cpu(), rows.cpu()]


def parts_of(backbone: FrozenBackbone) -> list[torch.device]:
    return [next(layer.parameters()).device for layer in backbone.language_model.layers]


@pytest.mark.parametrize("parts", [2, 3])
def test_the_way_through_the_borders_changes_nothing(parts: int, tiny_checkpoint: Path) -> None:
    expected = run(tiny_checkpoint, resolve_family(tiny_checkpoint).load_backbone())
    assert resolve_family(tiny_checkpoint).layout.num_deepstack > 0
    assert all(tensor.abs().max() > 0 for tensor in expected)
    backbone = resolve_family(tiny_checkpoint).load_backbone()
    digest = backbone.digest()
    distribute_layers(backbone, [CPU] * parts)
    for found, tensor in zip(run(tiny_checkpoint, backbone), expected, strict=True):
        assert torch.equal(found, tensor)
    assert backbone.digest() == digest
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_layers_stay_together_and_the_rest_is_on_the_first_device(tiny_checkpoint: Path) -> None:
    backbone = resolve_family(tiny_checkpoint).load_backbone()
    distribute_layers(backbone, [CPU, torch.device("meta")])
    assert parts_of(backbone) == [CPU, CPU, torch.device("meta")]
    outside = [tensor.device for name, tensor in backbone.state_dict().items() if ".layers." not in name]
    assert set(outside) == {CPU}


def test_more_devices_than_layers_are_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="replay: 3 decoder layers for 4 GPUs; use fewer"):
        distribute_layers(resolve_family(tiny_checkpoint).load_backbone(), [CPU] * 4)


@pytest.mark.parametrize(("num_gpus", "expected"), [(0.5, 1), (1.0, 1), (2.0, 2), (4.0, "refused")])
def test_a_worker_takes_the_gpus_it_asked_ray_for(
    num_gpus: float, expected: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    data = {"layout": "birds", "image_size": 80}
    config = parse_config({"data": data, "replay": {"workers": 1, "num_gpus": num_gpus}}, where="test")
    if expected == "refused":
        with pytest.raises(ConfigError, match="replay.num_gpus = 4 but 2 CUDA devices in this process; set replay"):
            replay_devices(config)
    else:
        assert len(replay_devices(config)) == expected


@pytest.mark.gpu
def test_two_gpus_give_what_one_gives(tiny_checkpoint: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    first, second = (torch.device("cuda", index) for index in range(2))
    expected = run(tiny_checkpoint, resolve_family(tiny_checkpoint).load_backbone(device=first))
    backbone = resolve_family(tiny_checkpoint).load_backbone()
    distribute_layers(backbone, [first, second])
    assert parts_of(backbone) == [first, first, second]
    for found, tensor in zip(run(tiny_checkpoint, backbone), expected, strict=True):
        torch.testing.assert_close(found, tensor, rtol=1e-4, atol=1e-6)
