"""The deployable encoder: same numbers after saving and loading, and no silent damage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saga_dist.errors import CheckpointError, DataError, ModelError
from saga_dist.models.encoder import Encoder, load
from saga_dist.models.families import resolve_family
from saga_dist.models.pooler import Pooler


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path) -> Encoder:
    tower = resolve_family(tiny_checkpoint).load_tower()
    return Encoder(
        tower, Pooler("attention", "mlp", width=128, embedding_dim=32, layer_norm=True, seed=5), image_size=80
    )


@pytest.fixture(scope="module")
def saved(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "model"
    encoder.save(folder)
    return folder


@pytest.fixture(scope="module")
def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, 256, (80, 80, 3), dtype=np.uint8) for _ in range(5)]


def test_embeddings_are_those_of_tower_and_pooler(encoder: Encoder, arrays: list[np.ndarray]) -> None:
    embeddings_IE = encoder.encode(arrays)
    assert embeddings_IE.dtype == np.float32
    assert embeddings_IE.shape == (5, encoder.embedding_dim) == (5, 32)
    np.testing.assert_allclose(np.linalg.norm(embeddings_IE, axis=1), 1, rtol=1e-6)
    with torch.no_grad():
        values_NW = encoder.tower(encoder.tower.preprocess(arrays))
        expected_IE = encoder.pooler(values_NW[:, :128].split(25)).embeddings_IE
    np.testing.assert_allclose(embeddings_IE, expected_IE, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(arrays, batch_size=2), embeddings_IE, atol=1e-6)
    assert encoder.encode([]).shape == (0, 32)


def test_loading_gives_the_same_embeddings(encoder: Encoder, saved: Path, arrays: list[np.ndarray]) -> None:
    loaded = load(saved)
    assert not loaded.training
    np.testing.assert_array_equal(loaded.encode(arrays), encoder.encode(arrays))
    config = json.loads((saved / "config.json").read_text())
    assert (config["family"], config["image_size"], config["format_version"]) == ("qwen3_vl", 80, 1)
    assert config["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_bfloat16_towers_come_back_as_they_were(
    tiny_checkpoint: Path, tmp_path: Path, arrays: list[np.ndarray]
) -> None:
    tower = resolve_family(tiny_checkpoint).load_tower(dtype=torch.bfloat16)
    half = Encoder(tower, Pooler(width=128, embedding_dim=None), image_size=80)
    half.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.tower.model.pos_embed.weight.dtype == torch.bfloat16
    assert loaded.pooler.query.dtype == torch.float32
    np.testing.assert_array_equal(loaded.encode(arrays), half.encode(arrays))


def test_every_kind_of_image_is_understood(encoder: Encoder, arrays: list[np.ndarray], tmp_path: Path) -> None:
    picture = Image.fromarray(arrays[0])
    picture.save(tmp_path / "plain.png")
    turned = picture.transpose(Image.Transpose.ROTATE_90)  # the tag says: turn clockwise to see it upright
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    images = [
        arrays[0],
        picture,
        tmp_path / "plain.png",
        str(tmp_path / "turned.png"),
        Image.open(tmp_path / "turned.png"),
    ]
    embeddings_IE = encoder.encode(images)
    np.testing.assert_allclose(embeddings_IE, np.repeat(embeddings_IE[:1], len(images), axis=0), atol=1e-6)


def test_other_sizes_are_brought_to_the_saved_one(encoder: Encoder, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (150, 113, 3), dtype=np.uint8))
    large.save(tmp_path / "large.png")
    small = np.array(large.resize((80, 80), Image.Resampling.BICUBIC))
    expected_IE = encoder.encode([small])
    np.testing.assert_allclose(encoder.encode([large]), expected_IE, atol=1e-6)
    np.testing.assert_allclose(encoder.encode([tmp_path / "large.png"]), expected_IE, atol=1e-6)


def test_grey_images_are_three_equal_channels(encoder: Encoder, arrays: list[np.ndarray]) -> None:
    grey = arrays[0][..., 0]
    np.testing.assert_allclose(
        encoder.encode([grey]), encoder.encode([np.repeat(grey[..., None], 3, axis=2)]), atol=1e-6
    )


def test_what_is_no_image_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="float64 array of shape"):
        encoder.encode([np.zeros((80, 80, 3))])
    with pytest.raises(DataError, match=r"absent.png"):
        encoder.encode([tmp_path / "absent.png"])


def test_encoding_keeps_the_training_mode(encoder: Encoder, arrays: list[np.ndarray]) -> None:
    encoder.train()
    encoder.encode(arrays[:1])
    assert encoder.training
    encoder.eval()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_flipped_byte_is_found(saved: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: was altered") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", "manifest.json"])
def test_a_missing_file_is_named(saved: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load(folder)


def _with_config(saved: Path, folder: Path, **changes: object) -> Path:
    import hashlib

    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["config.json"] = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_other_versions_families_and_shapes_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"format version 2; expected 1"):
        load(_with_config(saved, tmp_path / "version", format_version=2))
    with pytest.raises(ModelError, match=r"model family 'other' is not supported"):
        load(_with_config(saved, tmp_path / "family", family="other"))
    pooler = {"kind": "attention", "key": "mlp", "width": 128, "embedding_dim": 16, "layer_norm": True}
    with pytest.raises(ModelError, match=r"tensor pooler.projection.* has shape"):
        load(_with_config(saved, tmp_path / "shape", pooler=pooler))
    with pytest.raises(CheckpointError, match=r"no such folder"):
        load(tmp_path / "nowhere")


@pytest.mark.integration
def test_neither_ray_nor_vllm_nor_a_language_model_is_needed(saved: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('ray', 'vllm', 'faiss', 'pyarrow'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from saga_dist.models.encoder import load\n"
        f"print(load({str(saved)!r}).encode([np.zeros((80, 80, 3), np.uint8)]).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.strip() == "(1, 32)", done.stderr[-2000:]


def test_transparency_is_white_however_the_image_comes(
    encoder: Encoder, arrays: list[np.ndarray], tmp_path: Path
) -> None:
    alpha = np.zeros((80, 80, 1), np.uint8)
    alpha[:40] = 255
    clear = Image.fromarray(np.concatenate([arrays[0], alpha], axis=2))
    clear.save(tmp_path / "clear.png")
    white = arrays[0].copy()
    white[40:] = 255
    embeddings_IE = encoder.encode([clear, tmp_path / "clear.png", np.asarray(clear), white])
    np.testing.assert_allclose(embeddings_IE, np.repeat(embeddings_IE[3:], 4, axis=0), atol=1e-6)
