"""The example of an encoder in sentence-transformers: the page's commands print what the encoder itself finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from examples.page import run_command
from PIL import Image

import saga_dist
from saga_dist.export.folder import export_encoder
from saga_dist.models.encoder import Encoder
from saga_dist.models.families import resolve_family
from saga_dist.models.pooler import Pooler

pytestmark = pytest.mark.integration
SCRIPT = "encoder_in_sentence_transformers.py"


@pytest.fixture
def place(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an exported encoder, a query and seven photos, two of which are the same picture."""
    monkeypatch.chdir(tmp_path)
    pictures = [np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8) for seed in range(6)]
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name, picture in zip(("a", "b", "c", "d", "e", "more/f", "more/again"), [*pictures, pictures[1]], strict=True):
        Image.fromarray(picture).resize((90, 70)).save(tmp_path / "photos" / f"{name}.png")
    Image.fromarray(pictures[3]).resize((90, 70)).save(tmp_path / "query.jpg")
    tower = resolve_family(tiny_checkpoint).load_tower()
    Encoder(tower, Pooler(width=128, embedding_dim=16, seed=1), image_size=80).save(tmp_path / "model")
    export_encoder(tmp_path / "model", tmp_path / "encoder", form="sentence-transformers")
    return tmp_path


def test_it_prints_the_nearest_photos_and_those_that_are_alike(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command(SCRIPT, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    photos = sorted(Path("photos").rglob("*.png"))
    encoder = saga_dist.load(place / "model")
    cosines_I = encoder.encode(photos) @ encoder.encode("query.jpg")
    order = np.argsort(-cosines_I)[:5]
    assert [line.split()[1] for line in lines[:5]] == [str(photos[index]) for index in order]
    assert [float(line.split()[0]) for line in lines[:5]] == pytest.approx(cosines_I[order], abs=1e-3)
    assert "1.0000  photos/b.png and photos/more/again.png are nearly alike" in lines[5:]


def test_a_folder_that_is_missing_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "encoder").rename(place / "elsewhere")
    with pytest.raises(SystemExit) as end:
        run_command(SCRIPT, monkeypatch)
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert printed.startswith("error: encoder: no such folder") and printed.count("\n") == 1
