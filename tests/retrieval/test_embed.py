"""A folder of images to an embedding file: complete, resumable, and never of two models."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from saga_dist.cli.main import app
from saga_dist.errors import CheckpointError, DataError, ModelError
from saga_dist.models.encoder_folder import encoder_folder
from saga_dist.retrieval import embed
from saga_dist.retrieval.embed import embed_folder, list_images
from saga_dist.retrieval.identity import ModelIdentity, read_identity
from saga_dist.retrieval.tables import EmbeddingTable, Source, read_embeddings, write_embeddings

MODEL = ModelIdentity("a" * 64, "qwen3_vl", 8, {"patch_size": 8}, "/models/a")
OTHER = ModelIdentity("b" * 64, "qwen3_vl", 8, {"patch_size": 8}, "/models/b")


class MeanColor:
    """An encoder whose embedding can be written down: the direction of the mean colour."""

    image_size = 8

    def __init__(self, stop_after: int = 10**9) -> None:
        self.encoded = 0
        self._stop_after = stop_after

    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Returns [I, 3]."""
        if self.encoded + len(images) > self._stop_after:
            raise KeyboardInterrupt
        self.encoded += len(images)
        means = np.stack([image.reshape(-1, 3).mean(0) for image in images])
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def paint(path: Path, color: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), color).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    paint(root / "b" / "deep" / "blue.png", (0, 0, 255))
    paint(root / "a" / "red.png", (200, 0, 0))
    paint(root / "mixed.webp", (30, 40, 0))
    paint(root / ".hidden" / "x.png", (1, 1, 1))
    (root / "notes.txt").write_text("no image")
    return root


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_rows_are_the_images_by_path_with_their_embeddings(folder: Path, tmp_path: Path, suffix: str) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / f"out{suffix}"
    done = embed_folder(MeanColor(), MODEL, folder, out, on_progress=lambda *state: seen.append(state))
    assert (done.num_images, done.num_new, done.bad) == (3, 3, ())
    assert seen[0] == (0, 3)
    assert seen[-1] == (3, 3)
    table = read_embeddings(out)
    assert table.ids == ("a/red.png", "b/deep/blue.png", "mixed.webp")
    np.testing.assert_allclose(table.values_IE[:2], [[1, 0, 0], [0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(table.values_IE[2], [0.6, 0.8, 0], atol=0.05)  # WebP is lossy
    assert table.source == Source(MODEL, str(folder.resolve()))
    assert table.sizes_bytes_I.tolist() == [(folder / name).stat().st_size for name in table.ids]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", out.name]


def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        paint(folder / f"{number}.png", (number * 20, 255 - number, 7))
    monkeypatch.setattr(embed, "BATCH_SIZE", 2)
    monkeypatch.setattr(embed, "BATCHES_PER_PART", 2)
    whole, out = tmp_path / "whole.arrow", tmp_path / "out.arrow"
    embed_folder(MeanColor(), MODEL, folder, whole)
    with pytest.raises(KeyboardInterrupt):
        embed_folder(MeanColor(stop_after=7), MODEL, folder, out)
    assert not out.exists()
    encoder = MeanColor()
    done = embed_folder(encoder, MODEL, folder, out)
    assert encoder.encoded == done.num_new == 12 - 4  # one part of two batches had reached the disk
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "out.arrow.parts").exists()


def test_a_second_run_embeds_what_is_new_or_changed_and_forgets_what_is_gone(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    embed_folder(MeanColor(), MODEL, folder, out)
    paint(folder / "a" / "red.png", (0, 90, 0))
    os.utime(folder / "a" / "red.png", ns=(1, 1))
    paint(folder / "new.png", (0, 0, 9))
    (folder / "mixed.webp").unlink()
    encoder = MeanColor()
    done = embed_folder(encoder, MODEL, folder, out)
    assert (done.num_images, done.num_new, encoder.encoded) == (3, 2, 2)
    table = read_embeddings(out)
    assert table.ids == ("a/red.png", "b/deep/blue.png", "new.png")
    np.testing.assert_allclose(table.values_IE, [[0, 1, 0], [0, 0, 1], [0, 0, 1]], atol=1e-6)


def test_bad_images_are_listed_up_to_a_share(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"no image at all")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / os.fsdecode(b"bad-\xff.png")).write_bytes(b"")
    out = tmp_path / "out.arrow"
    with pytest.raises(DataError, match=r"3 of 6 images cannot be used.*at most 40%.*out.arrow.bad.jsonl"):
        embed_folder(MeanColor(), MODEL, folder, out, max_bad_share=0.4)  # two names are bad, and one content
    with pytest.raises(DataError, match=r"2 of 6 images cannot be used"):
        embed_folder(MeanColor(), MODEL, folder, out, max_bad_share=0.2)
    assert not out.exists()
    done = embed_folder(MeanColor(), MODEL, folder, out, max_bad_share=0.5)
    assert (done.num_images, len(done.bad)) == (3, 3)
    listed = [json.loads(line) for line in done.bad_list.read_text().splitlines()]
    assert {row["id"] for row in listed} == {"broken.jpg", "gone.png", "'bad-\\udcff.png'"}
    (folder / "broken.jpg").unlink()
    (folder / "gone.png").unlink()
    (folder / os.fsdecode(b"bad-\xff.png")).unlink()
    embed_folder(MeanColor(), MODEL, folder, out)
    assert not done.bad_list.exists()


def test_a_file_of_another_model_or_folder_is_not_touched(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.arrow"
    embed_folder(MeanColor(), MODEL, folder, out)
    before = out.read_bytes()
    with pytest.raises(ModelError, match=r"made with model aaaaaaaaaaaa, not with bbbbbbbbbbbb"):
        embed_folder(MeanColor(), OTHER, folder, out)
    paint(tmp_path / "elsewhere" / "x.png", (1, 2, 3))
    with pytest.raises(DataError, match=r"holds the images of"):
        embed_folder(MeanColor(), MODEL, tmp_path / "elsewhere", out)
    assert out.read_bytes() == before


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown suffix '.csv'; expected .arrow or .parquet"):
        embed_folder(MeanColor(), MODEL, folder, tmp_path / "out.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images"):
        embed_folder(MeanColor(), MODEL, tmp_path / "empty", tmp_path / "out.arrow")
    with pytest.raises(DataError, match=r"No such file"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "foreign.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"saga-dist embed"):
        read_embeddings(tmp_path / "foreign.parquet")
    with pytest.raises(CheckpointError, match=r"holds no saved encoder"):
        encoder_folder(tmp_path)
    with pytest.raises(DataError, match=r"float32 \[1, E\]"):
        EmbeddingTable(Source(MODEL, "/"), ("a",), np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros((2, 3)))


def test_another_version_of_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = np.zeros(1, np.int64)
    table = EmbeddingTable(Source(MODEL, "/"), ("a",), none, none, np.ones((1, 2), np.float32))
    monkeypatch.setattr("saga_dist.retrieval.tables.FORMAT_VERSION", 2)
    write_embeddings(tmp_path / "new.arrow", table)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"format version 2, metric 'cosine'; expected 1, cosine"):
        read_embeddings(tmp_path / "new.arrow")


def test_identity_is_weights_preprocessing_and_shape_but_not_package_versions(tmp_path: Path) -> None:
    def identity(**changes: object) -> str:
        config = {"family": "f", "image_size": 80, "versions": {"torch": "2.13"}} | changes
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "preprocessor_config.json").write_text("{}")
        digests = {"model.safetensors": "1", "preprocessor_config.json": "2"}
        (tmp_path / "manifest.json").write_text(json.dumps({"sha256": digests}))
        return read_identity(tmp_path).sha256

    assert identity() == identity(versions={"torch": "2.14"})
    assert identity() != identity(image_size=96)
    (tmp_path / "manifest.json").write_text(json.dumps({"sha256": {"model.safetensors": "1"}}))
    with pytest.raises(CheckpointError, match=r"cannot be read"):
        read_identity(tmp_path)


def test_the_command_says_what_it_left_out_and_why(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["saga_dist.cli.embed"], "load_encoder", lambda *_: MeanColor())
    monkeypatch.setattr("saga_dist.models.encoder_folder.encoder_folder", lambda path: path)
    monkeypatch.setattr("saga_dist.retrieval.identity.read_identity", lambda path: MODEL)
    done = CliRunner().invoke(app, ["embed", "encoder", str(folder), "--out", str(tmp_path / "out.arrow")])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[-2] == f"{folder}: left out 2 files: 1 x hidden, 1 x .txt is not an image format"
    assert lines[-1].endswith("3 embeddings, 3 of them new")
