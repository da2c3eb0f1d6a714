"""docs/troubleshooting.md quotes messages as the package prints them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
OF_OTHERS = {"Bus error", "Version mismatch", "operator torchvision::nms does not exist", "ray status"}
"""Messages and commands of the system, Ray and torchvision."""
SOURCES = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "saga_dist").rglob("*.py")))
SOURCES = re.sub(r'"\s*\n\s*f?"', "", SOURCES)  # a message may be written on several lines


def quoted() -> list[str]:
    """Returns the texts in code that are neither commands nor settings."""
    page = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    texts = {
        text for text in re.findall(r"`([^`]+)`", page) if " " in text and not text.startswith(("saga-dist ", "make "))
    }
    return sorted(texts - OF_OTHERS)


@pytest.mark.parametrize("text", quoted())
def test_a_quoted_message_is_one_of_the_package(text: str) -> None:
    start = text.partition("…")[0].removesuffix("the learner, ").strip()
    assert re.sub(r" \d+%$", "", start) in SOURCES


def test_messages_are_quoted() -> None:
    assert len(quoted()) >= 5
