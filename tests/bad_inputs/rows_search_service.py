"""Requests that the example of a search service cannot answer, and folders that it cannot start with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from bad_inputs.row import BadInput, Workspace

FILE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "faiss_service.py"


@cache
def service() -> ModuleType:
    spec = importlib.util.spec_from_file_location("faiss_service", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked_for(path: str) -> Callable[[Workspace], Any]:
    return lambda workspace: service().num_matches(path)


def length(text: str) -> Callable[[Workspace], Any]:
    return lambda workspace: service().body_size({"Content-Length": text} if text else {})


def started_with(name: str) -> Callable[[Workspace], Any]:
    return lambda workspace: service().ImageSearch(workspace.folder / name)


MATCHES, LENGTH = "expected a number from 1 to 1,000", "expected a number from 1 to 32,000,000"
ROWS = [
    BadInput("a request for no matches", "matches of a request", asked_for("/search?k=0"), ("k: '0'", MATCHES)),
    BadInput("a request in words", "matches of a request", asked_for("/search?k=five"), ("'five'", MATCHES)),
    BadInput("a request for an empty number", "matches of a request", asked_for("/search?k="), ("k: ''", MATCHES)),
    BadInput("a request for too many", "matches of a request", asked_for("/search?k=1001"), ("k: '1001'", MATCHES)),
    BadInput("a request in other digits", "matches of a request", asked_for("/search?k=%D9%A3"), (MATCHES,)),
    BadInput("a request to another page", "page of a request", asked_for("/find?k=3"), ("/find", "POST /search?k=5")),
    BadInput("a request without a length", "length of a request", length(""), ("Content-Length: ''", LENGTH)),
    BadInput("a request of negative length", "length of a request", length("-1"), (LENGTH,)),
    BadInput("a request without a body", "length of a request", length("0"), (LENGTH,)),
    BadInput("a request of too many bytes", "length of a request", length("32000001"), (LENGTH,)),
    BadInput("a length of thousands of digits", "length of a request", length("9" * 5000), (f"'{'9' * 20}'", LENGTH)),
    BadInput(
        "a service of an index that is not there",
        "index of a service",
        started_with("photos.index"),
        ("photos.index/manifest.json", "No such file", "a folder that `saga-dist index` wrote"),
    ),
]
