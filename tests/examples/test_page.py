"""The page of examples has every example."""

from __future__ import annotations

import re

from examples.page import PAGE


def test_every_example_is_on_the_page() -> None:
    linked = set(re.findall(r"\]\(examples/([^)]+)\)", PAGE.read_text("utf-8")))
    assert linked == {file.name for file in (PAGE.parent / "examples").iterdir() if file.suffix in (".py", ".ipynb")}
