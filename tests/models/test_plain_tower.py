"""The plain tower of saved Qwen3-VL encoders gives the tokens of the tower that was trained, and loads without more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from saga_dist.models.encoder import Encoder, load
from saga_dist.models.families import SAVED_TOWERS, resolve_family
from saga_dist.models.families.preprocessing import load_processor, saved_value_table, value_table
from saga_dist.models.families.qwen3_vl.plain_tower import PlainQwen3VLTower
from saga_dist.models.families.qwen3_vl.tower import Qwen3VLTower
from saga_dist.models.pooler import Pooler
from saga_dist.standin.checkpoint import write_random_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Qwen3VLTower:
    """A tower of three layers, two of which give DeepStack maps, as a learner has it."""
    folder = write_random_checkpoint(
        tmp_path_factory.mktemp("plain"), seed=7, tower_depth=3, deepstack=(0, 2), layers=3
    )
    tower = resolve_family(folder).load_tower()
    assert isinstance(tower, Qwen3VLTower)
    return tower


@pytest.fixture(scope="module")
def saved(trained: Qwen3VLTower, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    Encoder(trained, Pooler(width=128, embedding_dim=16), image_size=80).save(folder)
    return folder


def rebuilt(saved: Path, trained: Qwen3VLTower, dtype: torch.dtype = torch.float32) -> PlainQwen3VLTower:
    description = json.loads((saved / "config.json").read_text())["vision_config"]
    tower = PlainQwen3VLTower.rebuild(description, saved, dtype=dtype)
    assert isinstance(tower, PlainQwen3VLTower)
    tower.model.load_state_dict(trained.model.state_dict())
    return tower


def images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize("sizes", [((80, 80),) * 3, ((80, 80), (48, 64), (16, 80))], ids=["one size", "three sizes"])
def test_tokens_and_gradients_are_those_of_the_trained_tower_to_the_bit(
    trained: Qwen3VLTower, saved: Path, sizes: tuple[tuple[int, int], ...]
) -> None:
    plain = rebuilt(saved, trained)
    pixels, expected_pixels = plain.preprocess(images(*sizes)), trained.preprocess(images(*sizes))
    assert torch.equal(pixels.pixel_values, expected_pixels.pixel_values)
    assert (pixels.grids, pixels.lengths) == (expected_pixels.grids, expected_pixels.lengths)
    assert plain.layout == trained.layout
    found_NW, expected_NW = plain(pixels), trained(expected_pixels)
    assert torch.equal(found_NW, expected_NW)
    weights_NW = torch.randn(found_NW.shape, generator=torch.Generator().manual_seed(0))
    trained.zero_grad(set_to_none=True)
    (found_NW * weights_NW).sum().backward()
    (expected_NW * weights_NW).sum().backward()
    expected = dict(trained.model.named_parameters())
    assert {name for name, _ in plain.model.named_parameters()} == set(expected)
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad), name


def test_tokens_in_bfloat16_are_those_of_the_trained_tower_to_the_bit(trained: Qwen3VLTower, saved: Path) -> None:
    description = json.loads((saved / "config.json").read_text())["vision_config"]
    half = Qwen3VLTower.rebuild(description, saved, dtype=torch.bfloat16)
    half.model.load_state_dict(trained.model.state_dict())
    plain = rebuilt(saved, trained, torch.bfloat16)
    pixels = plain.preprocess(images((80, 80), (80, 80)))
    assert torch.equal(plain(pixels), half(pixels))
    assert plain.describe() == json.loads(json.dumps(half.describe()))


def test_recomputed_activations_give_the_same_gradients(trained: Qwen3VLTower, saved: Path) -> None:
    gradients = []
    for recompute in (False, True):
        plain = rebuilt(saved, trained)
        if recompute:
            plain.enable_gradient_checkpointing()
        plain(plain.preprocess(images((80, 80)))).square().sum().backward()
        gradients.append([parameter.grad for parameter in plain.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_a_loaded_encoder_is_saved_as_the_same_files(saved: Path, tmp_path: Path) -> None:
    loaded = load(saved)
    assert isinstance(loaded.tower, PlainQwen3VLTower)
    loaded.save(tmp_path)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "manifest.json"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes(), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]},
        {"do_normalize": False},
        {"do_rescale": False},
    ],
    ids=["as saved", "three channels", "not normalised", "not rescaled"],
)
def test_pixel_values_are_those_of_the_processor_to_the_bit(
    saved: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    content = json.loads((saved / "preprocessor_config.json").read_text()) | settings
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    expected_CV = value_table(load_processor(tmp_path / "preprocessor_config.json"))
    found_CV = saved_value_table(content)
    assert found_CV is not None
    np.testing.assert_array_equal(found_CV, expected_CV)


@pytest.mark.parametrize("change", [{"hidden_act": "silu"}, {"hidden_act": "quick_gelu"}])
def test_a_configuration_that_the_plain_model_does_not_know_is_left_to_transformers(
    saved: Path, change: dict[str, object]
) -> None:
    description = json.loads((saved / "config.json").read_text())["vision_config"] | change
    assert isinstance(PlainQwen3VLTower.rebuild(description, saved, dtype=torch.float32), Qwen3VLTower)


def test_incomplete_preprocessing_is_left_to_the_processor_of_transformers(saved: Path, tmp_path: Path) -> None:
    content = json.loads((saved / "preprocessor_config.json").read_text())
    del content["rescale_factor"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    description = json.loads((saved / "config.json").read_text())["vision_config"]
    assert isinstance(PlainQwen3VLTower.rebuild(description, tmp_path, dtype=torch.float32), Qwen3VLTower)


FOREIGN = ("transformers", "sklearn", "scipy", "torch._dynamo", "ray", "vllm", "faiss", "pyarrow")


def imported(program: str) -> list[str]:
    """Modules among ``FOREIGN``, and modules of language models in this package, that a program imports."""
    report = (
        "\nimport sys\nown = [name for name in sys.modules if name.startswith('saga_dist.models.families.')]\n"
        f"print(*({set(FOREIGN)!r} & sys.modules.keys()))\n"
        "print(*(name for name in own if name.endswith(('.backbone', '.decoder', '.family'))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program + report], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return " ".join(done.stdout.splitlines()[-2:]).split()


def test_loading_and_encoding_imports_neither_transformers_nor_a_language_model(saved: Path) -> None:
    program = f"import numpy as np, saga_dist\nsaga_dist.load({str(saved)!r}).encode(np.zeros((80, 80, 3), np.uint8))"
    assert imported(program) == []


@pytest.mark.integration
@pytest.mark.parametrize(
    "family", [name if name == "qwen3_vl" else pytest.param(name, marks=pytest.mark.slow) for name in SAVED_TOWERS]
)
def test_the_tower_of_a_saved_encoder_imports_no_language_model_of_this_package(family: str) -> None:
    module, _, _ = SAVED_TOWERS[family].partition(":")
    assert [name for name in imported(f"import {module}") if name.startswith("saga_dist")] == []
