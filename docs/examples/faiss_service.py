"""Example of a search service: the body of a POST is an image file, the answer the nearest indexed images as JSON.

    python docs/examples/faiss_service.py photos.index --port 8000
    curl --data-binary @query.jpg 'http://127.0.0.1:8000/search?k=3'

    {"matches": [{"id": "wren/3.jpg", "path": "/photos/wren/3.jpg", "cosine": 0.9312}, …]}

Index and encoder are loaded once. A request that cannot be answered gets status 400 and one line, ``{"error": …}``; GET
says how many images are indexed. Only this machine reaches the service unless ``--host`` is given. It knows no users
and no encryption: put a reverse proxy before it.
"""

from __future__ import annotations

import argparse
import io
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from saga_dist.data.images import read_image
from saga_dist.errors import DataError, UserError
from saga_dist.models.encoder import load
from saga_dist.models.encoder_folder import encoder_folder
from saga_dist.retrieval.identity import read_identity
from saga_dist.retrieval.index import open_index

MAX_BYTES = 32_000_000
"""Largest image file of a request."""
MAX_MATCHES = 1000
"""Largest number of images of an answer."""
TIMEOUT_S = 30
"""Seconds without a byte from a client after which its connection is closed."""


class ImageSearch:
    """An index and the encoder that made it, both in memory.

    Args:
        folder: folder that ``saga-dist index`` wrote.
        model: run directory, or the encoder's own folder; None for the folder that embedded the images.

    Raises:
        UserError: there is no index or no encoder, or the index was made with another encoder.
    """

    def __init__(self, folder: Path, model: Path | None = None) -> None:
        self.index = open_index(folder)
        saved = encoder_folder(model or self.index.model.folder)
        self.index.model.refuse_other(read_identity(saved), where=str(folder))
        self._encoder = load(saved)
        self._one_at_a_time = threading.Lock()  # each forward pass uses all cores

    def nearest(self, image: bytes, k: int) -> list[dict[str, Any]]:
        """Returns id, path and cosine of the k images nearest to an image, best first.

        Raises:
            DataError: the bytes are no image that can be read.
        """
        pixels = read_image("body of the request", self._encoder.image_size, file=io.BytesIO(image))
        with self._one_at_a_time:
            (found,) = self.index.search(self._encoder.encode([pixels]), k)
        return [{"id": name, "path": str(self.index.root / name), "cosine": round(score, 4)} for name, score in found]


def body_size(headers: Mapping[str, str]) -> int:
    """Returns the number of bytes of a request's body.

    Raises:
        DataError: it is not given, 0, or more than ``MAX_BYTES``.
    """
    return _whole_number(headers.get("Content-Length", ""), where="Content-Length", largest=MAX_BYTES)


def num_matches(path: str) -> int:
    """Returns k of a request's path, ``/search?k=5``.

    Raises:
        DataError: it is another path, or k is no number from 1 to ``MAX_MATCHES``.
    """
    page, _, query = path.partition("?")
    if page != "/search":
        raise DataError(f"no such page {page}", expected="POST /search?k=5")
    return _whole_number(parse_qs(query, keep_blank_values=True).get("k", ["5"])[-1], where="k", largest=MAX_MATCHES)


def _whole_number(text: str, *, where: str, largest: int) -> int:
    """Returns the number that a text of a request stands for.

    Raises:
        DataError: it is no number from 1 to ``largest``.
    """
    is_number = text.isascii() and text.isdecimal() and len(text) < 20  # Python does not read thousands of digits
    if not (is_number and 1 <= int(text) <= largest):
        raise DataError(f"{text[:20]!r}", where=where, expected=f"a number from 1 to {largest:,}")
    return int(text)


class SearchServer(ThreadingHTTPServer):
    """HTTP server with one thread per connection.

    Args:
        address: host and port; port 0 for a free one.
        search: index and encoder.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], search: ImageSearch) -> None:
        self.search = search
        super().__init__(address, SearchHandler)


class SearchHandler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: SearchServer
    protocol_version = "HTTP/1.1"  # with 1.0, curl waits a second before it sends a large body
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        """Answers with the number of indexed images."""
        self._answer(200, {"images": len(self.server.search.index)})

    def do_POST(self) -> None:
        """Answers with the images that are nearest to that in the body."""
        try:
            size = body_size(self.headers)
        except DataError as error:
            self.close_connection = True  # the body is not read, so that no further request can be
            self._answer(400, {"error": str(error)})
            return
        body = self.rfile.read(size)
        try:
            self._answer(200, {"matches": self.server.search.nearest(body, num_matches(self.path))})
        except DataError as error:
            self._answer(400, {"error": str(error)})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        line = json.dumps(content).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(line)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(line)


def arguments() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(description="Answer searches over HTTP.")
    parser.add_argument("index", type=Path, help="folder from saga-dist index")
    parser.add_argument("--model", type=Path, help="run directory or encoder; default: the one that made the index")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 for a free one")
    return parser


def main() -> None:
    """Serves until Ctrl-C."""
    parser = arguments()
    given = parser.parse_args()
    try:
        server = SearchServer((given.host, given.port), ImageSearch(given.index, given.model))
    except (UserError, OSError, OverflowError) as error:
        parser.exit(2, f"error: {error}\n")
    host, port = server.server_address[:2]
    print(f"{len(server.search.index):,} images; POST one to http://{host}:{port}/search?k=5", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
