"""Members of JSON-like objects, and their division out of the tokens between two braces."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from saga_dist.objectives.json_tokens import content

_ENDED_BY_A_MARK = ("word", "mark", "list")
"""Kinds of pieces that are complete when a comma, a closing brace or a key follows."""


class JsonMember(NamedTuple):
    """A ``"key": value`` directly inside an object."""

    key: str
    """Content of the key's string, or the bare words before the colon."""
    start: int
    """Index in the text of the value's first character."""
    end: int
    """Index in the text after the value's last character."""
    closed: bool
    """False when the text ends inside the value."""
    clean: bool
    """True when the value is exactly one string, word, object or list."""
    rest_end: int
    """Index after text without a key that follows the value and its comma; ``end`` when there is none."""
    object: JsonObject | None = None
    """The value's members, when it is an object."""


@dataclass(slots=True)
class JsonObject:
    """The interior of an object: the text between its braces."""

    start: int
    """Index after the opening brace."""
    end: int
    """Index of the closing brace, or of the end of the text."""
    closed: bool = False
    """True when there is a closing brace."""
    members: list[JsonMember] = field(default_factory=list)
    """Members in order."""


class Piece(NamedTuple):
    """One token, object or list of a key or value."""

    kind: str
    """``string``, ``word``, ``cut``, ``mark``, ``object`` or ``list``."""
    start: int
    end: int
    complete: bool
    """False when the text may have ended inside the piece."""
    object: JsonObject | None = None


class Body:
    """Divides the pieces inside an object into members.

    Args:
        text: the text.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self.members: list[JsonMember] = []
        """Members so far."""
        self._key: str | None = None
        """Key whose value is being read; None where a key is expected."""
        self._value_start = 0
        """Index after the last key's colon."""
        self._part: list[Piece] = []
        """Pieces since the last comma or colon."""

    @property
    def awaits_key(self) -> bool:
        """True directly after a comma, and at the start."""
        return self._key is None and not self._part

    @property
    def awaits_value(self) -> bool:
        """True directly after a key's colon."""
        return self._key is not None and not self._part

    @property
    def lacks_brace(self) -> bool:
        """True when a colon now means that the value is an object without its opening brace."""
        return self._key is not None and len(self._part) == 1 and self._part[0].kind == "string"

    def plain_member(self, member: re.Match[str]) -> None:
        """Adds a member of two strings without escapes."""
        start, end = member.span(2)
        self.members.append(JsonMember(member.group(1)[1:-1], start, end, closed=True, clean=True, rest_end=end))

    def add(self, piece: Piece) -> None:
        """Adds a piece to the present key or value."""
        self._part.append(piece)

    def take_start(self) -> int:
        """Removes the present value and returns the index of its first character."""
        return self._part.pop(0).start

    def colon(self, token: re.Match[str]) -> None:
        """Makes a key of the present part, or of the last piece of a value after which a comma is missing."""
        if self._key is None:
            self._begin(self._part, token.end())
        elif self._part and self._may_be_key(self._part):
            *value, key = self._part
            self._part = value
            self.end_part(terminated=True)
            self._begin([key], token.end())
        else:
            self._part.append(Piece("mark", token.start(), token.end(), True))

    def end_part(self, *, terminated: bool) -> None:
        """Ends a value, or text without a key.

        Args:
            terminated: True at a comma, a closing brace or another key, False at the end of the text.
        """
        part, self._part = self._part, []
        if self._key is not None:
            key, self._key = self._key, None
            start, end = (part[0].start, part[-1].end) if part else (self._value_start, self._value_start)
            closed = part[-1].complete or (terminated and part[-1].kind in _ENDED_BY_A_MARK) if part else terminated
            nested = part[0].object if len(part) == 1 else None
            self.members.append(JsonMember(key, start, end, closed, len(part) == 1, rest_end=end, object=nested))
        elif part and terminated and self.members:
            self.members[-1] = self.members[-1]._replace(rest_end=part[-1].end)

    def _begin(self, part: list[Piece], value_start: int) -> None:
        raw = self._text[part[0].start : part[-1].end] if part else ""
        self._key, self._value_start, self._part = content(raw) if len(part) == 1 else raw, value_start, []

    def _may_be_key(self, part: list[Piece]) -> bool:
        """Returns True for a string, and for a word that is the first of its line."""
        last = part[-1]
        if last.kind != "word":
            return last.kind == "string"
        before = part[-2].end if len(part) > 1 else self._value_start
        return self._text.find("\n", before, last.start) >= 0
