"""The ONNX graph of every family: the encoder's own embeddings and neighbours, in a process without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from saga_dist.cli.main import app
from saga_dist.errors import ModelError
from saga_dist.export.onnx_graph import build_graph
from saga_dist.models.encoder import Encoder
from saga_dist.models.families import resolve_family
from saga_dist.models.families.qwen2_5_vl.tower import Qwen25VLTower
from saga_dist.models.pooler import Pooler

pytestmark = pytest.mark.integration

READ = """
import sys
for name in ('torch', 'transformers', 'ray', 'vllm'): sys.modules[name] = None
import numpy as np
from saga_dist.export.onnx_encoder import OnnxEncoder
np.save({out!r}, OnnxEncoder({folder!r}).encode(list(np.load({images!r}))))
"""


def encoder_of(checkpoint: Path, size: int, kind: str = "attention") -> Encoder:
    tower = resolve_family(checkpoint).load_tower()
    embedding_dim = 32 if kind == "attention" else tower.layout.width
    return Encoder(
        tower, Pooler(kind, width=tower.layout.width, embedding_dim=embedding_dim, seed=1), image_size=size
    ).eval()


def pictures(count: int, size: int) -> np.ndarray:
    """Random images, coarse and fine: neither a place nor a colour looks like another."""
    generator = np.random.default_rng(5)
    coarse = generator.integers(0, 200, (count, 4, 4, 3))
    rows = np.arange(size) * 4 // size
    return (coarse[:, rows][:, :, rows] + generator.integers(0, 56, (count, size, size, 3))).astype(np.uint8)


def ten_nearest(embeddings_IE: np.ndarray) -> np.ndarray:
    cosines_II = embeddings_IE.astype(np.float64) @ embeddings_IE.astype(np.float64).T
    np.fill_diagonal(cosines_II, -np.inf)
    return np.argsort(-cosines_II, axis=1, kind="stable")[:, :10]


@pytest.mark.parametrize(
    "family_checkpoint",
    ["qwen3_vl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2_5_vl", "internvl"))],
    indirect=True,
)
def test_a_process_without_torch_finds_the_same_embeddings_and_neighbours(
    family_checkpoint: Path, tmp_path: Path
) -> None:
    encoder, images = encoder_of(family_checkpoint, 80), pictures(100, 80)
    encoder.save(tmp_path / "model")
    np.save(tmp_path / "images.npy", images)
    folder, out = tmp_path / "onnx", tmp_path / "found.npy"
    done = CliRunner().invoke(app, ["export", str(tmp_path / "model"), "--format", "onnx", "--out", str(folder)])
    assert done.exit_code == 0, (done.output, done.exception)
    program = READ.format(out=str(out), folder=str(folder), images=str(tmp_path / "images.npy"))
    read = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    assert read.returncode == 0, read.stderr[-3000:]
    own_IE, found_IE = encoder.encode(list(images)), np.load(out)
    assert own_IE.std(0).max() > 0.01  # not one point
    assert (own_IE.astype(np.float64) * found_IE).sum(1).min() >= 0.9999
    np.testing.assert_array_equal(ten_nearest(found_IE), ten_nearest(own_IE))


# 80 pixels: windows of three sizes in Qwen2.5-VL, the position table's own size in InternVL; 48: neither.
@pytest.mark.parametrize(("size", "kind"), [(80, "mean"), (80, "max"), (48, "attention")])
def test_other_poolers_and_sizes_go_into_the_graph_too(family_checkpoint: Path, size: int, kind: str) -> None:
    encoder, images = encoder_of(family_checkpoint, size, kind), pictures(3, size)
    found_IE = build_graph(encoder)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found_IE, encoder.encode(list(images)), atol=2e-6)


def test_the_windows_of_qwen2_5_vl_matter(family_checkpoint: Path) -> None:
    encoder, images = encoder_of(family_checkpoint, 80), torch.from_numpy(pictures(3, 80))
    graph = build_graph(encoder)
    if not isinstance(encoder.tower, Qwen25VLTower):
        assert not any(getattr(graph, "windowed", ()))
        return
    assert graph.windowed == (True, False, True)
    with_windows_IE = graph(images)
    graph.window_PP.fill_(True)
    assert (graph(images) - with_windows_IE).abs().max() > 1e-3


def test_the_encoder_is_left_as_it_was(family_checkpoint: Path) -> None:
    encoder = encoder_of(family_checkpoint, 48)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    build_graph(encoder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_an_unknown_tower_is_refused_in_one_line(family_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stranger(nn.Module):
        family = "stranger"

    encoder = encoder_of(family_checkpoint, 80)
    monkeypatch.setattr(encoder, "tower", Stranger())
    with pytest.raises(ModelError, match=r"--format onnx: no graph for family 'stranger'; expected qwen3_vl"):
        build_graph(encoder)
