"""Escapes untrusted text for display: completions come from an MLLM, class names from folders of a data set.

All displayed text goes through ``shown`` first. The page escapes it a second time where it is put into HTML
(autoescape) or JSON (``json_block``).
"""

from __future__ import annotations

import json
from typing import Any

MAX_COMPLETION = 20_000
"""Characters of one completion that a page shows."""
MAX_NAME = 120
"""Characters of a class or file name that a page shows."""

# JSON escapes of characters that could end the <script> element, open a comment, or end a line of JavaScript.
_JSON_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def shown(text: str, limit: int = MAX_COMPLETION) -> str:
    """Returns the text with every character that is not printable escaped (``\\x1b``, ``\\u202e``, ``\\ud800``).

    Line breaks and tabs stay. Terminal control characters, characters that change the writing direction, and lone
    surrogates, which UTF-8 cannot encode, become visible escapes.

    Args:
        text: any characters, any length.
        limit: number of characters of ``text`` to keep; a note at the end gives the number of those left out.
    """
    kept = "".join(
        character if character.isprintable() or character in "\n\t" else _escaped(character)
        for character in text[:limit]
    )
    return f"{kept} … ({len(text) - limit:,} more characters)" if len(text) > limit else kept


def shown_name(name: str) -> str:
    """Returns a class, file or attribute name on one line, escaped and cut to ``MAX_NAME`` characters by ``shown``."""
    return shown(" ".join(name.split()), MAX_NAME)


def json_block(value: Any) -> str:
    """Returns JSON that is safe inside ``<script type="application/json">`` for any strings in it.

    Args:
        value: JSON values.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A string that was not escaped by ``shown`` must not break the encoding of the file.
    return text.encode("utf-8", "backslashreplace").decode("utf-8").translate(_JSON_ESCAPES)


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
