"""Frozen encoders under the protocol of a run: the same vectors as the library's own, and clear refusals."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from saga_dist.baselines.evaluate import compare
from saga_dist.baselines.frozen_encoder import open_encoder, parse_spec
from saga_dist.baselines.published_table import notes, published_table
from saga_dist.cli.main import app, main
from saga_dist.config import load_config
from saga_dist.data.images import read_image, read_original, square_image
from saga_dist.errors import ConfigError, ModelError, UserError
from saga_dist.protocols import Embeddings
from saga_dist.retrieval.results import SplitResult, TrainingFacts
from saga_dist.runtime.build import build_splits
from saga_dist.runtime.run import evaluate_encoder, train
from saga_dist.sweep.table import load_table
from saga_dist.training.evaluation import retrieval_result

ROOT = Path(__file__).resolve().parents[2]
BIRDS = ROOT / "configs" / "birds.toml"
CPU = torch.device("cpu")
FEW_BIRDS = ["data.birds.test_images_per_class=2", "data.birds.val_images_per_class=2", "runtime.kind=serial"]
NAME = "vit_tiny_patch16_224"
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="the extra timm is not installed")


def _config(*overrides: str) -> Any:
    return load_config(ROOT / "configs" / "birds.toml", [*FEW_BIRDS, *overrides])


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Of several shapes, none square but one."""
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in ((80, 80), (60, 90), (120, 70))
    ]


def _same(ours_IE: np.ndarray, features_IE: torch.Tensor) -> None:
    expected = torch.nn.functional.normalize(features_IE.double(), dim=1).numpy()
    assert ours_IE.dtype == np.float32
    assert ours_IE.shape == expected.shape
    np.testing.assert_allclose(ours_IE, expected, atol=2e-6)


# ---------------------------------------------------------------------- timm


@needs_timm
def test_timm_weights_from_a_file_give_timms_own_features(images: list[Image.Image], tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    whole = timm.create_model(NAME, pretrained=False).eval()
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    encoder = open_encoder(f"timm:{tmp_path}/weights.safetensors@{NAME}", CPU)
    settings = timm.data.resolve_model_data_config(whole)
    pixels = torch.stack([timm.data.create_transform(**settings)(image) for image in images])
    with torch.no_grad():
        features = whole.forward_head(whole.forward_features(pixels), pre_logits=True)
    _same(encoder.encode(images), features)
    card = encoder.card
    assert (card.dimension, card.image_height, card.image_width, card.pooling) == (192, 224, 224, "token")
    assert card.parameters == sum(p.numel() for name, p in whole.named_parameters() if not name.startswith("head."))
    assert "weights.safetensors" in card.pretraining

    save_file({k: v for k, v in whole.state_dict().items() if k != "norm.weight"}, tmp_path / "part.safetensors")
    with pytest.raises(ModelError, match=r"1 tensors do not fit, first norm\.weight"):
        open_encoder(f"timm:{tmp_path}/part.safetensors@{NAME}", CPU)
    save_file({"norm.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="another shape"):
        open_encoder(f"timm:{tmp_path}/other.safetensors@{NAME}", CPU)
    (tmp_path / "weights.pth").write_bytes(b"pickle")
    with pytest.raises(ConfigError, match=r"expected a \.safetensors file"):
        open_encoder(f"timm:{tmp_path}/weights.pth@{NAME}", CPU)


@pytest.mark.integration
@needs_timm
def test_random_timm_weights_under_the_protocol() -> None:
    torch.manual_seed(0)
    row = compare(f"timm:{NAME}?pretrained=false", _config(), "test")
    assert row.encoder.pretraining == "none: random weights"
    assert (row.result.num_queries, row.result.num_classes, row.split) == (100, 50, "test")
    assert row.result.map_at_r is not None and row.result.r_precision is not None
    # With one other image a class, all that is asked is the first rank.
    assert row.result.map_at_r == row.result.r_precision == row.result.recall_at_1
    assert row.ms_per_image > 0


@needs_timm
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:vit_tny_patch16_224", "did you mean vit_tiny_patch16_224"),
        (f"timm:{NAME}.bogus", "has no weights 'bogus'; expected augreg_in21k"),
        (f"timm:{NAME}", "weights of vit_tiny_patch16_224 cannot be had.*check the network"),
        (f"timm:/nowhere.safetensors@{NAME}", "/nowhere.safetensors"),
    ],
)
def test_timm_names_and_weights_that_cannot_be_had(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_encoder(spec, CPU)
    assert "\n" not in str(caught.value)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'saga-dist\[timm\]'"):
        open_encoder(f"timm:{NAME}", CPU)


# ---------------------------------------------------------------------- Hugging Face


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def _saved(model: Any, folder: Path, size: int) -> str:
    from transformers import ViTImageProcessor

    model.eval().save_pretrained(folder)
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
    return f"hf:{folder}"


def _pixels(folder: str, images: list[Image.Image]) -> torch.Tensor:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder.removeprefix("hf:"))
    return processor(images=images, return_tensors="pt")["pixel_values"]


@torch.no_grad()
def test_dinov2_with_registers_in_three_ways(images: list[Image.Image], tmp_path: Path) -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14, num_register_tokens=3
    )
    model = Dinov2WithRegistersModel(config)
    spec = _saved(model, tmp_path, 28)
    (tmp_path / "README.md").write_text("---\ndatasets: [lvd142m]\nlicense: apache-2.0\n---\nA tower.\n")
    output = model(_pixels(spec, images))
    assert output.last_hidden_state.shape == (3, 1 + 3 + 4, 32)
    _same(open_encoder(spec, CPU).encode(images), output.pooler_output)
    _same(open_encoder(f"{spec}?pool=cls", CPU).encode(images), output.last_hidden_state[:, 0])
    _same(open_encoder(f"{spec}?pool=mean", CPU).encode(images), output.last_hidden_state[:, 4:].mean(1))
    card = open_encoder(spec, CPU).card
    assert (card.pooling, card.dimension, card.image_height) == ("pooled", 32, 28)
    assert card.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert "datasets: lvd142m; license: apache-2.0" in card.pretraining
    assert "dinov2_with_registers" in card.backbone


@torch.no_grad()
def test_a_pooler_that_the_checkpoint_lacks_is_not_invented(images: list[Image.Image], tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    model = ViTModel(ViTConfig(image_size=32, patch_size=16, **SMALL), add_pooling_layer=False)
    spec = _saved(model, tmp_path, 32)
    encoder = open_encoder(spec, CPU)
    assert encoder.card.pooling == "cls"
    assert "its card names no data" in encoder.card.pretraining
    _same(encoder.encode(images), model(_pixels(spec, images)).last_hidden_state[:, 0])
    with pytest.raises(ConfigError, match=r"the checkpoint has no pooler.*use \?pool=cls"):
        open_encoder(f"{spec}?pool=pooled", CPU)


@torch.no_grad()
def test_siglip_gives_its_image_half(images: list[Image.Image], tmp_path: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    vision, text = {**SMALL, "image_size": 32, "patch_size": 16}, {**SMALL, "vocab_size": 50, "projection_size": 32}
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    spec = _saved(model, tmp_path, 32)
    encoder = open_encoder(spec, CPU)
    output = model.vision_model(_pixels(spec, images))
    _same(encoder.encode(images), output.pooler_output)
    assert encoder.card.pooling == "pooled"
    assert encoder.card.parameters == sum(parameter.numel() for parameter in model.vision_model.parameters())
    _same(open_encoder(f"{spec}?pool=mean", CPU).encode(images), output.last_hidden_state.mean(1))
    with pytest.raises(ConfigError, match="no class token"):
        open_encoder(f"{spec}?pool=cls", CPU)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "cannot be loaded"),
        ({"config.json": '{"model_type": "vit"}'}, "cannot be loaded.*preprocessor_config.json"),
        (
            {
                "config.json": '{"model_type": "from_the_future"}',
                "preprocessor_config.json": '{"image_processor_type": "ViTImageProcessor"}',
            },
            "transformers cannot use it.*from_the_future",
        ),
    ],
)
def test_folders_that_are_no_encoder(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        open_encoder(f"hf:{tmp_path}", CPU)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_with_holes_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import ViTConfig, ViTModel

    spec = _saved(ViTModel(ViTConfig(image_size=32, patch_size=16, **SMALL)), tmp_path, 32)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are not in the checkpoint, first layernorm\.weight"):
        open_encoder(spec, CPU)


def test_the_hub_out_of_reach() -> None:
    with pytest.raises(ModelError, match="check the name and the network") as caught:
        open_encoder("hf:somebody/some-encoder", CPU)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no such folder"):
        open_encoder("hf:/nowhere/at/all", CPU)


# ---------------------------------------------------------------------- runs, and the command


@pytest.mark.integration
def test_a_run_is_evaluated_as_by_its_own_command(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"model.path={tiny_checkpoint}", "objective.lambda_lm=0", "objective.lambda_kl=0", "run.steps=1"]
    config, directory = _config(*overrides), tmp_path / "run"
    train(config, directory)
    own = evaluate_encoder(directory, "test").splits["test"]
    file = tmp_path / "row.json"
    arguments = ["--encoder", f"run:{directory}", str(ROOT / "configs" / "birds.toml"), *FEW_BIRDS, "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["saga-dist", "evaluate", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    output = capfd.readouterr().out
    row = json.loads(file.read_text())
    for name in ("recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "nmi", "num_queries"):
        assert row["result"][name] == getattr(own, name)
    assert tuple(row["result"]["confidence_interval"]) == own.confidence_interval
    assert f"{100 * own.recall_at_1:.1f}" in output
    assert "then 1 steps on birds: 1 x potential_field, 0 x GRPO" in output
    assert compare(f"run:{directory}", config, "val").result.num_queries > 0

    table = ["--beside", str(ROOT / "configs" / "tables" / "table1_cub.toml")]
    monkeypatch.setattr(sys, "argv", ["saga-dist", "evaluate", str(directory), *table, "--json", str(file)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert json.loads(file.read_text())["splits"]["test"]["recall_at_1"] == own.recall_at_1
    output = capfd.readouterr().out
    assert "Main results, CUB-200-2011: published, and this one" in output
    assert "87.9 ± 0.3" in output


@pytest.mark.integration
def test_figures_are_those_of_the_encoders_vectors(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    spec = _saved(Dinov2Model(config), tmp_path, 28)
    test = build_splits(_config().data, seed=0).test
    values = open_encoder(spec, CPU).encode([test.original(index) for index in range(len(test))])
    expected = retrieval_result(Embeddings(values, test.labels_I), seed=0, resamples=2000, precision=True)
    assert compare(spec, _config(), "test").result.recall_at_1 == pytest.approx(expected.recall_at_1, abs=0.011)


@pytest.mark.parametrize(
    "text",
    ["vit", "foo:bar", "timm:", "hf:x?pool=max", "timm:x?pool=cls", "run:x?pretrained=false", "timm:x?pretrained"],
)
def test_specs_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--encoder") as caught:
        parse_spec(text)
    assert "\n" not in str(caught.value)


def test_parts_of_a_spec() -> None:
    spec = parse_spec("hf:org/name?pool=cls")
    assert (spec.kind, spec.name, spec.options) == ("hf", "org/name", {"pool": "cls"})
    assert parse_spec("run:runs/a:b").name == "runs/a:b"


def test_originals_are_whole_upright_and_without_the_banner(tmp_path: Path) -> None:
    pixels = np.zeros((50, 30, 3), np.uint8)
    pixels[:40, :, 0], pixels[40:, :, 2] = np.arange(30) * 8, 255
    exif = Image.Exif()
    exif[0x0112] = 3  # lies upside down
    Image.fromarray(pixels[::-1, ::-1]).save(tmp_path / "a.png", exif=exif)
    original = read_original(tmp_path / "a.png", banner=10)
    assert original.size == (30, 40)
    assert np.array_equal(np.asarray(original), pixels[:40])
    # From the original, the training size comes out as it does from the file.
    assert np.array_equal(square_image(original, 16), read_image(tmp_path / "a.png", 16, banner=10))


# ---------------------------------------------------------------------- beside the published rows


def test_published_rows_beside_a_result() -> None:
    """87.9 of SAGA lies within [86, 88], 81.6 below it; a row without figures is left out."""
    facts = TrainingFacts(
        metric_loss="infonce", optimizer_steps=275, images_seen=17_600, image_height=224, image_width=224,
        pretraining="standin",
    )  # fmt: skip
    result = SplitResult(
        recall_at_1=0.87, recall_at_2=0.9, recall_at_4=0.95, recall_at_8=0.97, nmi=0.825,
        confidence_interval=(0.86, 0.88), num_queries=5924, num_classes=100,
    )  # fmt: skip
    table = load_table(ROOT / "configs" / "tables" / "table1_cub.toml")
    unpublished = table.variant[0].model_copy(update={"name": "mine", "label": "unpublished", "paper": None})
    table = table.model_copy(update={"variant": (*table.variant, unpublished)})
    console = Console(file=io.StringIO(), width=160)
    console.print(published_table(table, result, name="runs/[bold]mine", training=facts))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = {line.split("  ")[0].strip(): line.split() for line in text.splitlines() if line.strip()}
    assert rows["SAGA (Potential Field)"][-5:] == ["87.9", "±", "0.3", "0.83", "within"]
    assert rows["Potential Field"][-3:] == ["81.6", "0.81", "below"]
    assert rows["runs/[bold]mine"][-3:] == ["87.0", "86.0–88.0", "0.825"]
    assert rows["runs/[bold]mine"][1:-3] == ["infonce", "17,600", "275", "224", "standin"]
    assert rows["SAGA (Potential Field)"][-10:-5] == ["–", "–", "–", "224", "Qwen3-VL-8B"]
    assert rows["UNICOM ViT-L/14@336, fine-tuned"][-2:] == ["90.1", "above"]
    assert "336" in rows["UNICOM ViT-L/14@336, frozen"]
    assert notes(table, result, num_runs=1)[0] == "95 %: over test classes; one run: says nothing about other runs"
    assert notes(table, result, num_runs=0)[:2] == [
        "95 %: over test classes",
        "published: SAGA, arXiv 2606.15134, Table 1",
    ]
    assert "published: UNICOM, arXiv 2304.05884" in notes(table, result, num_runs=0)
    assert "unpublished" not in text
    worse = result.model_copy(update={"confidence_interval": (0.5, 0.6)})
    console.print(published_table(table, worse, name="worse"))
    assert console.file.getvalue().count("above") == 4 + 9  # type: ignore[attr-defined]


def test_a_table_that_is_none_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "table.toml").write_text("title = 3")
    with pytest.raises(ConfigError, match="expected a table of variants"):
        app(
            ["evaluate", "--encoder", f"timm:{NAME}", str(BIRDS), "--beside", str(tmp_path / "table.toml")],
            standalone_mode=False,
        )
