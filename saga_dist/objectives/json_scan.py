"""Scanner that lists the members of the outermost JSON objects in untrusted generated text, in one linear pass.

Python's own parser rejects a completion that is truncated, fenced, or followed by other text. This scanner reads the
valid parts of such a text. It does not recurse, and needs linear time and no memory beyond the stack of brackets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

# Text around the object may have stray braces and quotes, so an object starts only where a brace precedes a key.
_OBJECT_START = re.compile(r'\{(?=\s*+")')
# A string is one token; group 1 is empty when the text ends inside it.
_TOKEN = re.compile(r'[{}\[\],:]|"(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_CLOSER = {"{": "}", "[": "]"}


@dataclass(frozen=True, slots=True)
class JsonMember:
    """A ``"key": value`` directly inside an outermost object of the text."""

    key: str
    """Decoded key."""
    start: int
    """Index in the text of the value's first character."""
    end: int
    """Index in the text after the value's last character."""
    closed: bool
    """False when the text ends inside the value."""
    clean: bool
    """False when something other than a comma or the end of the object follows the value."""


def scan_members(text: str) -> list[JsonMember]:
    """Returns the members of every outermost object of a text, in order; members of nested objects are not listed.

    A truncated value ends at the end of the text, with ``closed`` False. A malformed part gives no member, and no
    error. Time is linear in the length of the text.
    """
    members: list[JsonMember] = []
    position = 0
    while (opening := _OBJECT_START.search(text, position)) is not None:
        position = _scan_object(text, opening.start(), members)
    return members


def decode_string(literal: str) -> str | None:
    """Returns the content of a quoted JSON string; None when ``literal`` is no JSON string."""
    try:
        value = json.loads(literal, strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _scan_object(text: str, opening: int, members: list[JsonMember]) -> int:
    """Appends the members of the object that starts at ``opening``; returns the index at which to continue."""
    tokens = _TOKEN.finditer(text, opening + 1)
    position, key_allowed, key = opening + 1, True, ""
    for token in tokens:
        symbol, adjacent = token.group(), _is_blank(text, position, token.start())
        position = token.end()
        if symbol == "}":
            return position
        if symbol == ":" and key and adjacent:
            position, object_ended = _scan_value(text, tokens, decode_string(key), position, members)
            if object_ended:
                return position
            key_allowed, key = True, ""
            continue
        key = symbol if symbol[0] == '"' and key_allowed and adjacent else ""
        key_allowed = symbol == ","
        if symbol in _CLOSER:
            position, _ = _skip_nested(tokens, symbol, len(text))
    return len(text)


def _scan_value(
    text: str, tokens: Iterator[re.Match[str]], key: str | None, start: int, members: list[JsonMember]
) -> tuple[int, bool]:
    """Appends the member whose value begins at or after ``start``.

    Returns:
        The index after the value's terminator, and True when the object ends there.
    """
    value: tuple[int, int] | None = None
    closed = clean = first = True
    terminator, stop, after, value_end = "", len(text), len(text), start
    for token in tokens:
        symbol = token.group()
        if symbol in (",", "}"):
            terminator, stop, after = symbol, token.start(), token.end()
            break
        value_end, ended = token.end(), symbol[0] != '"' or bool(token.group(1))
        if symbol in _CLOSER:
            value_end, ended = _skip_nested(tokens, symbol, len(text))
        if first and (symbol[0] == '"' or symbol in _CLOSER) and _is_blank(text, start, token.start()):
            value, closed = (token.start(), value_end), ended
        else:
            clean = False
        first = False
    if value is None:  # a number, true, false, null, or invalid JSON
        raw = text[start:stop]
        value_start = start + len(raw) - len(raw.lstrip())
        value, closed = (value_start, max(value_start, start + len(raw.rstrip()))), bool(terminator)
    else:
        clean = clean and _is_blank(text, value_end, stop)
    if key is not None:
        members.append(JsonMember(key, *value, closed=closed, clean=clean))
    return after, terminator != ","


def _skip_nested(tokens: Iterator[re.Match[str]], opening: str, text_end: int) -> tuple[int, bool]:
    """Returns the index after the bracket that closes ``opening``, with True; the end of the text, with False."""
    expected = [_CLOSER[opening]]
    for token in tokens:
        symbol = token.group()
        if symbol in _CLOSER:
            expected.append(_CLOSER[symbol])
        elif symbol in ("}", "]") and symbol in expected[-2:]:
            # One missing closing bracket per level is tolerated; other unexpected closing brackets are ignored.
            while expected.pop() != symbol:
                pass
            if not expected:
                return token.end(), True
    return text_end, False


def _is_blank(text: str, start: int, end: int) -> bool:
    return start == end or text[start:end].isspace()
