"""From images to search with the real encoder, by the commands a user types."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from saga_dist.cli.main import app
from saga_dist.errors import DataError, ModelError, UserError
from saga_dist.models.encoder import Encoder, load
from saga_dist.models.families import resolve_family
from saga_dist.models.pooler import Pooler
from saga_dist.retrieval.identity import read_identity
from saga_dist.retrieval.index import open_index
from saga_dist.retrieval.search import Match, contact_sheet, search_images

COLORS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (190, 190, 40), (120, 60, 160))


def save_encoder(checkpoint: Path, folder: Path, *, seed: int) -> Path:
    tower = resolve_family(checkpoint).load_tower()
    Encoder(tower, Pooler(width=128, embedding_dim=16, seed=seed), image_size=80).save(folder)
    return folder


def run(*arguments: object) -> str:
    """Standard output of the command line; errors of ours come as they are."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)
    if isinstance(done.exception, UserError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A folder with images, two models, and an index made with the first by the commands."""
    place = tmp_path_factory.mktemp("search")
    generator = np.random.default_rng(4)
    for number, color in enumerate(COLORS):
        for copy in range(3):
            noise = generator.integers(-25, 25, (50, 60, 3))
            path = place / "images" / f"class {number}" / f"{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(noise + color, 0, 255).astype(np.uint8)).save(path)
    save_encoder(tiny_checkpoint, place / "run" / "model", seed=1)
    save_encoder(tiny_checkpoint, place / "other", seed=2)
    run("embed", place / "run", place / "images", "--out", place / "e.parquet")
    run("index", place / "e.parquet", "--out", place / "index")
    return place


def test_search_prints_rank_cosine_and_path_of_the_nearest(workshop: Path) -> None:
    image = workshop / "images" / "class 2" / "1.png"
    lines = run("search", workshop / "index", image, "-k", 4).splitlines()
    rows = [line.split(maxsplit=2) for line in lines]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0][1:] == ["1.0000", str(image)]
    paths = sorted((workshop / "images").rglob("*.png"))
    embeddings_IE = load(workshop / "run" / "model").encode(paths)
    cosines_I = embeddings_IE @ embeddings_IE[paths.index(image)]
    order = np.argsort(-cosines_I)[:4]
    assert [row[2] for row in rows] == [str(paths[row]) for row in order]
    assert [float(row[1]) for row in rows] == pytest.approx(cosines_I[order], abs=1e-4)


def test_several_images_are_searched_with_one_load(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [workshop / "images" / f"class {number}" / "0.png" for number in range(3)]
    alone = [run("search", workshop / "index", image, "-k", 2) for image in images]
    loads = []
    monkeypatch.setattr("saga_dist.models.encoder.load", lambda *args, **kwargs: loads.append(args) or load(args[0]))
    monkeypatch.setattr("saga_dist.retrieval.search.BATCH_SIZE", 2)
    printed = run("search", workshop / "index", *images, "-k", 2, "--json", tmp_path / "found.jsonl")
    assert printed == "".join(f"{image}:\n{rows}" for image, rows in zip(images, alone, strict=True))
    assert len(loads) == 1
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [row["query"] for row in rows] == [str(image) for image in images]
    assert [[match["path"] for match in row["matches"]] for row in rows] == [
        [line.split(maxsplit=2)[2] for line in text.splitlines()] for text in alone
    ]
    assert rows[0]["matches"][0] == {
        "id": "class 0/0.png",
        "path": str(images[0]),
        "cosine": pytest.approx(1, abs=1e-6),
    }


def test_paths_are_read_from_standard_input(workshop: Path) -> None:
    images = [str(workshop / "images" / f"class {number}" / "0.png") for number in range(2)]
    done = CliRunner().invoke(
        app, ["search", str(workshop / "index"), "-", "-k", "1"], input="\n".join(images) + "\n\n"
    )
    assert done.exit_code == 0, done.output
    assert done.stdout == run("search", workshop / "index", *images, "-k", 1)


def test_fewer_images_than_asked_for_are_noted(workshop: Path) -> None:
    done = CliRunner().invoke(
        app, ["search", str(workshop / "index"), str(workshop / "images" / "class 0" / "0.png"), "-k", "1000"]
    )
    assert len(done.stdout.splitlines()) == 15
    assert done.stderr.splitlines()[-1] == f"note: -k 1,000, but {workshop / 'index'} has 15 images"


def test_the_sheet_shows_query_and_matches_in_order(workshop: Path) -> None:
    image, sheet = workshop / "images" / "class 0" / "0.png", workshop / "sheet.png"
    paths = [
        line.split(maxsplit=2)[2] for line in run("search", workshop / "index", image, "--sheet", sheet).split("\n")[:5]
    ]
    picture = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    for place, path in enumerate([str(image), *paths]):
        tile_HWC = picture[12 + 40 : 12 + 120, 12 + place * 172 + 40 : 12 + place * 172 + 120]
        expected_C = np.asarray(Image.open(path)).reshape(-1, 3).mean(0)
        np.testing.assert_allclose(tile_HWC.reshape(-1, 3).mean(0), expected_C, atol=6)


def test_a_lost_or_hostile_name_does_not_stop_the_sheet(tmp_path: Path, workshop: Path) -> None:
    query = workshop / "images" / "class 0" / "0.png"
    names = ["gone.png", "\x1b[31m\n" + "long " * 500 + ".png", "鳥.png"]
    picture = contact_sheet(query, [Match(name, tmp_path / "nowhere", 0.5) for name in names])
    assert picture.size == (4 * 172 + 12, 206 + 12)


def test_another_model_is_refused(workshop: Path) -> None:
    image = workshop / "images" / "class 0" / "0.png"
    with pytest.raises(ModelError, match=r"made with model \w{12}, not with \w{12} .*other\); expected the same"):
        run("search", workshop / "index", image, "--model", workshop / "other")
    other = workshop / "other"
    with pytest.raises(ModelError, match=r"made with model"):
        next(search_images(open_index(workshop / "index"), load(other), read_identity(other), [image], 5))
    with pytest.raises(ModelError, match=r"made with model"):
        run("embed", other, workshop / "images", "--out", workshop / "e.parquet")


def test_a_moved_model_is_the_same_model(workshop: Path, tmp_path: Path) -> None:
    shutil.copytree(workshop / "run" / "model", tmp_path / "moved")
    image = workshop / "images" / "class 1" / "2.png"
    assert run("search", workshop / "index", image, "--model", tmp_path / "moved") == run(
        "search", workshop / "index", image
    )


def test_mistakes_are_named(workshop: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.png: cannot read the image"):
        run("search", workshop / "index", tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"sheet.gif: unknown suffix '.gif'; expected .png"):
        run("search", workshop / "index", workshop / "images" / "class 0" / "0.png", "--sheet", tmp_path / "sheet.gif")
    shutil.copytree(workshop / "index", tmp_path / "index")
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    manifest["model"]["folder"] = str(tmp_path / "gone")
    (tmp_path / "index" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"gone: no such folder"):
        run("search", tmp_path / "index", workshop / "images" / "class 0" / "0.png")
