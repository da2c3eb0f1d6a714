"""Untrusted text made harmless: completions come from an MLLM, class names from folders that anyone may have named.

Whatever is shown goes through ``shown`` first; the page escapes it a second time where it is put into HTML (autoescape)
or JSON (``json_block``).
"""

from __future__ import annotations

import json
from typing import Any

MAX_COMPLETION = 20_000
"""Characters of one completion that a page shows."""
MAX_NAME = 120
"""Characters of a class or file name that a page shows."""

# JSON escapes that keep the text from ending its <script>, opening a comment, or ending a line of JavaScript.
_JSON_ESCAPES = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def shown(text: str, limit: int = MAX_COMPLETION) -> str:
    """Returns the text with everything that is not printable written out (``\\x1b``, ``\\u202e``, ``\\ud800``).

    Line breaks and tabs stay. What a terminal would obey, what turns the direction of writing, and lone surrogates,
    which no UTF-8 file can hold, come out as visible escapes.

    Args:
        text: any characters, any length.
        limit: characters of ``text`` to keep; a note says how many were left out.
    """
    kept = "".join(
        character if character.isprintable() or character in "\n\t" else _written_out(character)
        for character in text[:limit]
    )
    return f"{kept} … ({len(text) - limit:,} more characters)" if len(text) > limit else kept


def shown_name(name: str) -> str:
    """Returns a class, file or attribute name on one line, bounded (see ``shown``)."""
    return shown(" ".join(name.split()), MAX_NAME)


def json_block(value: Any) -> str:
    """Returns JSON that may stand inside ``<script type="application/json">`` whatever strings it holds.

    Raises:
        ValueError: a number is not finite: JSON has no word for it.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A string that missed ``shown`` still must not break the file's encoding.
    return text.encode("utf-8", "backslashreplace").decode("utf-8").translate(_JSON_ESCAPES)


def _written_out(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
