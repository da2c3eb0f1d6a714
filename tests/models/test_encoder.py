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

from saga_dist.errors import CheckpointError, ConfigError, ModelError
from saga_dist.models.encoder import Encoder, load
from saga_dist.models.encoder_folder import CONTENT
from saga_dist.models.families import resolve_family
from saga_dist.models.pooler import Pooler
from saga_dist.utils.file_manifest import write_manifest


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


def test_other_sizes_are_brought_to_the_saved_one(encoder: Encoder, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (150, 113, 3), dtype=np.uint8))
    large.save(tmp_path / "large.png")
    small = np.array(large.resize((80, 80), Image.Resampling.BICUBIC))
    expected_IE = encoder.encode([small])
    np.testing.assert_allclose(encoder.encode([large]), expected_IE, atol=1e-6)
    np.testing.assert_allclose(encoder.encode([tmp_path / "large.png"]), expected_IE, atol=1e-6)


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
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    write_manifest(folder, CONTENT)
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


def test_a_run_directory_is_loaded_by_its_model(saved: Path, arrays: list[np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")  # the run's own configuration
    (tmp_path / "run" / "model").symlink_to(saved)
    np.testing.assert_array_equal(load(tmp_path / "run").encode(arrays), load(saved).encode(arrays))
    np.testing.assert_array_equal(load(str(tmp_path / "run")).encode(arrays), load(saved).encode(arrays))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float64])
def test_the_tower_is_loaded_in_the_dtype_asked_for(
    saved: Path, arrays: list[np.ndarray], dtype: str | torch.dtype
) -> None:
    loaded = load(saved, dtype=dtype, device=torch.device("cpu"))
    assert loaded.tower.model.pos_embed.weight.dtype == getattr(torch, str(dtype).removeprefix("torch."))
    assert loaded.pooler.query.dtype == torch.float32
    cosines_I = (loaded.encode(arrays) * load(saved).encode(arrays)).sum(1)
    assert cosines_I.min() > 0.999
    assert loaded.encode(arrays).dtype == np.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "nonsense"}, r"device = 'nonsense' cannot be used \(.*\); expected cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, r"device = 'cuda:99' cannot be used"),
        ({"device": "meta"}, r"device = 'meta' cannot be used \(it holds no values\)"),
        ({"dtype": "int8"}, r"dtype = 'int8'; expected float32, bfloat16, float16, float64"),
        ({"dtype": torch.bool}, r"dtype = 'bool'"),
    ],
)
def test_a_device_or_dtype_that_cannot_be_used_is_one_line_before_the_weights_are_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
) -> None:
    monkeypatch.setattr("saga_dist.models.encoder.encoder_folder", lambda path: pytest.fail("looked for the weights"))
    with pytest.raises(ConfigError, match=message) as caught:
        load(saved, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
