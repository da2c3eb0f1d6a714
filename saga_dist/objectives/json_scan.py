"""One linear pass over untrusted generated text that lists the members of its outermost JSON objects.

Python's own parser refuses a completion that was cut off, fenced, or followed by chatter. This scanner keeps what such
a text still says, does not recurse, and needs linear time and no memory beyond the bracket stack.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

# Prose may hold stray braces and quotes, so an object only begins where a brace is followed by a key.
_OBJECT_START = re.compile(r'\{(?=\s*+")')
# Strings are taken whole; group 1 is empty where the text ends inside one.
_TOKEN = re.compile(r'[{}\[\],:]|"(?:[^"\\]++|\\.)*+("?)', re.DOTALL)
_CLOSER = {"{": "}", "[": "]"}


@dataclass(frozen=True, slots=True)
class JsonMember:
    """One ``"key": value`` directly inside an outermost object of the text."""

    key: str
    start: int
    """Index of the value's first character."""
    end: int
    """Index after the value's last character."""
    closed: bool
    """False when the text ends inside the value."""
    clean: bool
    """False when something other than a comma or the object's end follows the value."""


def scan_members(text: str) -> list[JsonMember]:
    """Returns the members of every outermost object of ``text``, in order; nested members are not listed.

    A value that was cut off ends where the text ends, with ``closed`` False. Malformed stretches yield no member rather
    than an error. Time is linear in the length of the text.
    """
    members: list[JsonMember] = []
    position = 0
    while (opening := _OBJECT_START.search(text, position)) is not None:
        position = _scan_object(text, opening.start(), members)
    return members


def decode_string(literal: str) -> str | None:
    """Returns the content of a quoted JSON string, or None where it is not one."""
    try:
        value = json.loads(literal, strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _scan_object(text: str, opening: int, members: list[JsonMember]) -> int:
    """Appends the members of the object that opens at ``opening``; returns where to look for the next one."""
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
    """Appends the member whose value begins after ``start``; returns where it ends, and whether the object does."""
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
    if value is None:  # a number, true, false, null, or something that is no JSON at all
        raw = text[start:stop]
        value_start = start + len(raw) - len(raw.lstrip())
        value, closed = (value_start, max(value_start, start + len(raw.rstrip()))), bool(terminator)
    else:
        clean = clean and _is_blank(text, value_end, stop)
    if key is not None:
        members.append(JsonMember(key, *value, closed=closed, clean=clean))
    return after, terminator != ","


def _skip_nested(tokens: Iterator[re.Match[str]], opening: str, text_end: int) -> tuple[int, bool]:
    """Returns the place after the bracket that closes ``opening``, and whether there is one."""
    awaited = [_CLOSER[opening]]
    for token in tokens:
        symbol = token.group()
        if symbol in _CLOSER:
            awaited.append(_CLOSER[symbol])
        elif symbol in ("}", "]") and symbol in awaited[-2:]:
            # A forgotten closing bracket inside is forgiven once per level; any other stray closer is ignored.
            while awaited.pop() != symbol:
                pass
            if not awaited:
                return token.end(), True
    return text_end, False


def _is_blank(text: str, start: int, end: int) -> bool:
    return start == end or text[start:end].isspace()
