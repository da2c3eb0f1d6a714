"""The example of a search service, with real requests: what `search` finds, or one line with status 400."""

from __future__ import annotations

import http.client
import importlib.util
import io
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from examples.page import ROOT, words_of
from PIL import Image

import saga_dist
from saga_dist.models.encoder import Encoder
from saga_dist.models.families import resolve_family
from saga_dist.models.pooler import Pooler
from saga_dist.retrieval.index import build_index, open_index
from saga_dist.retrieval.tables import read_embeddings

pytestmark = pytest.mark.integration

Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def service() -> ModuleType:
    spec = importlib.util.spec_from_file_location("faiss_service", ROOT / "docs" / "examples" / "faiss_service.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A folder with 12 photos, an encoder and the index of the photos."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "photos").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number:02d}.png")
    tower = resolve_family(tiny_checkpoint).load_tower()
    Encoder(tower, Pooler(width=128, embedding_dim=16, seed=1), image_size=80).save(folder / "encoder")
    saga_dist.embed(folder / "encoder", folder / "photos", folder / "photos.parquet")
    build_index(read_embeddings(folder / "photos.parquet"), folder / "photos.index")
    return folder


@pytest.fixture(scope="module")
def ask(service: ModuleType, place: Path) -> Iterator[Ask]:
    """Sends one request to the running service; returns status and content of the answer, which is one line."""
    server = service.SearchServer(("127.0.0.1", 0), service.ImageSearch(place / "photos.index"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def send(
        body: bytes = b"", path: str = "/search", method: str = "POST", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert text.count("\n") == 1 and text.endswith("\n")
        return answer.status, json.loads(text)

    yield send
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_nearest_images_are_those_of_the_index(ask: Ask, place: Path) -> None:
    photo = place / "photos" / "04.png"
    status, content = ask(photo.read_bytes(), "/search?k=3")
    (expected,) = open_index(place / "photos.index").search(saga_dist.load(place / "encoder").encode([photo]), 3)
    assert status == 200
    assert content["matches"] == [
        {"id": name, "path": str(place / "photos" / name), "cosine": pytest.approx(cosine, abs=1e-4)}
        for name, cosine in expected
    ]
    assert content["matches"][0]["id"] == "04.png"
    assert len(ask(photo.read_bytes())[1]["matches"]) == 5
    assert ask(method="GET", path="/") == (200, {"images": 12})


def test_encoder_and_index_are_loaded_once_for_requests_at_the_same_time(
    service: ModuleType, ask: Ask, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("load", "open_index"):
        monkeypatch.setattr(service, name, lambda *_: pytest.fail("loaded again"))
    photos = sorted((place / "photos").iterdir())
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda photo: ask(photo.read_bytes(), "/search?k=1"), photos))
    assert [content["matches"][0]["id"] for _, content in answers] == [photo.name for photo in photos]


def png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "path", "headers", "says"),
    [
        (b"", "/search", {}, "Content-Length: '0'; expected a number from 1 to 32,000,000"),
        (b"GIF89a and no more", "/search", {}, "not an image, or damaged"),
        (png(400)[:60], "/search", {}, "damaged"),
        (png(8001), "/search", {}, "8001 x 8001 pixels; expected at most 64 megapixels"),
        (png(40), "/search?k=few", {}, "k: 'few'; expected a number from 1 to 1,000"),
        (png(40), "/photos", {}, "no such page /photos; expected POST /search?k=5"),
        (b"", "/search", {"Content-Length": "99000000"}, "Content-Length: '99000000'; expected"),
    ],
    ids=["nothing", "no picture", "cut off", "too many pixels", "k", "page", "too large"],
)
def test_a_bad_request_is_answered_with_one_line(
    ask: Ask, body: bytes, path: str, headers: dict[str, str], says: str, place: Path
) -> None:
    status, content = ask(body, path, **headers)
    assert status == 400 and content.keys() == {"error"}
    assert says in content["error"] and "\n" not in content["error"]
    assert ask((place / "photos" / "00.png").read_bytes())[0] == 200


def test_the_command_of_the_page_parses(service: ModuleType) -> None:
    given = service.arguments().parse_args(words_of("faiss_service.py")[1:])
    assert (given.index, given.port, given.host) == (Path("photos.index"), 8000, "127.0.0.1")


def test_a_service_that_cannot_start_says_why(
    service: ModuleType, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["faiss_service.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            service.main()
        assert end.value.code == 2
        return capsys.readouterr().err

    assert start(place / "photos").startswith(f"error: {place / 'photos' / 'manifest.json'}: cannot be read")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert start(place / "photos.index", "--port", port).count("\n") == 1
