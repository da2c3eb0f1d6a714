"""The hooks of the site, which lie beside the pages and are no package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hooks_on_the_path() -> Iterator[None]:
    """Makes ``sections``, ``equations`` and ``reference_pages`` importable, as MkDocs does; needs extra ``docs``."""
    for package in ("mkdocs", "latex2mathml", "pymdownx"):
        pytest.importorskip(package, reason='extra "docs"')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs" / "hooks"))
        yield
    for name in ("mkdocs_hook", "sections", "equations", "reference_pages"):
        sys.modules.pop(name, None)
