"""Tolerant reader of the JSON objects in untrusted generated text.

Python's own parser rejects a completion that is truncated, fenced, followed by other text, or written with one mistake.
This reader finds the members of every object in such a text. On valid JSON it gives what a parser gives.

Recovery rules; what none of them mends gives a member that is not ``clean``, or no member, and never an error:

    rule                      text                                   reading
    ------------------------  -------------------------------------  -----------------------------------------------
    other quotes              'a', “a”, ‘a’, «a»                     a string; an apostrophe inside a word is none
    bare words                {verdict: yes}                         a key and a value without quotes
    missing comma             "a": 1 "b": 2, or a new line           a quoted key, or the first word of a line, begins
                                                                     the next member
    missing opening brace     "a": "x": 1}                           a string with a colon, as a value, begins an
                                                                     object; so does a key at the start of the text
    missing closing brace     {"a": 1                                an object ends at the end of the text, not closed
    missing bracket           {"a": [1}, {"a": [1, "b": 2}           a brace, or a key in a list, ends the list
    early closing brace       {"a": 1}, "b": 2}                      a comma and a quote continue the object
    missing last quote        {"a": "yes}                            one word before the last braces is a string
    restarted object          {"a": 1 … {"a": 2}                     a brace where a key must stand begins a new
                                                                     outermost object; the old one is not closed

Time is linear in the length of the text. Objects nested deeper than eight levels, and lists, are passed over without a
record of their members, so memory beyond the tokens is a stack of brackets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from saga_dist.objectives.json_tokens import (
    GOES_ON,
    JSON_MEMBER,
    KEY_START,
    MISSING_LAST_QUOTE,
    OBJECT_START,
    TOKEN,
    content,
)

_DEEPEST = 8
"""Number of levels of objects whose members are listed."""
_CLOSER = {"{": "}", "[": "]"}
_ENDED_BY_A_MARK = ("word", "mark", "list")
"""Kinds of pieces that are complete when a comma, a closing brace or a key follows."""


class JsonMember(NamedTuple):
    """A ``"key": value`` directly inside an object."""

    key: str
    """Content of the key's string, or the bare words before the colon."""
    key_start: int
    """Index in the text of the key's first character."""
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


class _Piece(NamedTuple):
    """One token, object or list of a key or value."""

    kind: str
    """``string``, ``word``, ``cut``, ``mark``, ``object`` or ``list``."""
    start: int
    end: int
    complete: bool
    """False when the text may have ended inside the piece."""
    object: JsonObject | None = None


def scan_objects(text: str, start: int = 0, end: int | None = None) -> list[JsonObject]:
    """Returns the outermost objects of ``text[start:end]``, in order; all indices are those of ``text``."""
    return _Reader(text, start, len(text) if end is None else end).objects()


def scan_members(text: str) -> list[JsonMember]:
    """Returns the members of every outermost object of a text, in order; members of nested objects are not listed.

    A truncated value ends at the end of the text, with ``closed`` False. Time is linear in the length of the text.
    """
    return [member for found in scan_objects(text) for member in found.members]


class _Reader:
    """Reads objects from a range of a text; ``_position`` moves forward, except for one attempt at the range's start.

    Args:
        text: the text.
        start: index of the first character to read.
        end: index after the last character to read.
    """

    def __init__(self, text: str, start: int, end: int) -> None:
        self._text, self._position, self._end = text, start, end
        self._restarts = False
        """True after a brace that begins a new outermost object; all open objects end before it."""

    def objects(self) -> list[JsonObject]:
        """Returns the outermost objects in order."""
        found = []
        if (first := self._object_without_brace()) is not None:
            found.append(first)
        while (opening := OBJECT_START.search(self._text, self._position, self._end)) is not None:
            found.append(self._outermost(opening.end()))
        return found

    def _object_without_brace(self) -> JsonObject | None:
        """Returns the object that begins with a key at the start of the range and is closed by a brace."""
        start = self._position
        if KEY_START.match(self._text, start, self._end) is None:
            return None
        found = self._outermost(start)
        if not found.closed:
            self._position = start
        return found if found.closed else None

    def _outermost(self, start: int) -> JsonObject:
        self._restarts = False
        found = self._object(start, 0)
        closed = found.closed
        while found.closed and (comma := GOES_ON.match(self._text, self._position, self._end)) is not None:
            more = self._object(comma.end(), 0)
            found.members += more.members
            found.end, found.closed = more.end, more.closed
        found.closed = closed
        return found

    def _object(self, start: int, depth: int) -> JsonObject:
        """Returns the object whose interior begins at ``start``, and moves to the index after its closing brace."""
        self._position = start
        body = _Body(self._text)
        while (token := self._after_plain_members(body)) is not None:
            symbol = token.group() if token.lastgroup == "mark" else ""
            if symbol == "}":
                body.end_part(terminated=True)
                return JsonObject(start, token.start(), True, body.members)
            if symbol == ",":
                body.end_part(terminated=True)
            elif symbol == ":":
                if body.lacks_brace and depth + 1 < _DEEPEST:
                    body.add(self._nested_object(body.take_start(), depth))
                else:
                    body.colon(token)
            elif symbol == "[":
                body.add(_Piece("list", token.start(), *self._skip(symbol)))
            elif symbol == "{":
                if not body.awaits_value and OBJECT_START.match(self._text, token.start(), self._end):
                    self._position, self._restarts = token.start(), True
                elif depth + 1 < _DEEPEST:
                    body.add(self._nested_object(token.end(), depth, token.start()))
                else:
                    body.add(_Piece("object", token.start(), *self._skip(symbol)))
            elif not symbol:
                body.add(self._piece(token))
            if self._restarts:
                break
        body.end_part(terminated=False)
        return JsonObject(start, min(self._position, self._end), False, body.members)

    def _nested_object(self, start: int, depth: int, opening: int | None = None) -> _Piece:
        """Returns the object whose interior begins at ``start``; its value begins at its brace, if it has one."""
        nested = self._object(start, depth + 1)
        end = nested.end + 1 if nested.closed else nested.end
        return _Piece("object", start if opening is None else opening, end, nested.closed, nested)

    def _after_plain_members(self, body: _Body) -> re.Match[str] | None:
        """Returns the next token, after all members of two plain JSON strings that stand before it."""
        if body.awaits_key:
            while (member := JSON_MEMBER.match(self._text, self._position, self._end)) is not None:
                body.plain_member(member)
                self._position = member.end()
        return self._next()

    def _piece(self, token: re.Match[str]) -> _Piece:
        kind, start = str(token.lastgroup), token.start()
        if kind == "cut" and (word := MISSING_LAST_QUOTE.match(self._text, start, self._end)) is not None:
            self._position = word.end()
            return _Piece("string", start, word.end(), True)
        return _Piece(kind, start, token.end(), kind == "string")

    def _next(self) -> re.Match[str] | None:
        """Returns the next token, and moves after it; None at the end of the range."""
        while (token := TOKEN.search(self._text, self._position, self._end)) is not None:
            self._position = token.end()
            if token.lastgroup is not None:
                return token
        self._position = self._end
        return None

    def _skip(self, opening: str) -> tuple[int, bool]:
        """Returns the index after the bracket that closes ``opening``, and True; where it ends otherwise, and False.

        One missing closing bracket per level is tolerated; other unexpected closing brackets are ignored.
        """
        expected = [_CLOSER[opening]]
        previous: re.Match[str] | None = None
        while (token := self._next()) is not None:
            symbol = token.group() if token.lastgroup == "mark" else ""
            if symbol in _CLOSER:
                expected.append(_CLOSER[symbol])
            elif symbol in ("}", "]") and symbol in expected[-2:]:
                while expected.pop() != symbol:
                    pass
                if not expected:
                    return token.end(), True
            elif expected == ["]"] and symbol == "}":
                self._position = token.start()
                return token.start(), False
            elif expected == ["]"] and symbol == ":" and previous is not None and previous.lastgroup == "string":
                self._position = previous.start()
                return previous.start(), False
            previous = token
        return self._end, False


class _Body:
    """Divides the pieces inside an object into members.

    Args:
        text: the text.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self.members: list[JsonMember] = []
        """Members so far."""
        self._key: tuple[str, int, int] | None = None
        """Key, its start, and the index after its colon; None where a key is expected."""
        self._part: list[_Piece] = []
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
        """Adds a member of two plain JSON strings."""
        (key_start, key_end), (start, end) = member.span(1), member.span(2)
        self.members.append(
            JsonMember(self._text[key_start + 1 : key_end - 1], key_start, start, end, True, True, rest_end=end)
        )

    def add(self, piece: _Piece) -> None:
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
            self._part.append(_Piece("mark", token.start(), token.end(), True))

    def end_part(self, *, terminated: bool) -> None:
        """Ends a value, or text without a key.

        Args:
            terminated: True at a comma, a closing brace or another key, False at the end of the text.
        """
        part, self._part = self._part, []
        if self._key is not None:
            key, key_start, value_start = self._key
            self._key = None
            start, end = (part[0].start, part[-1].end) if part else (value_start, value_start)
            closed = part[-1].complete or (terminated and part[-1].kind in _ENDED_BY_A_MARK) if part else terminated
            nested = part[0].object if len(part) == 1 else None
            self.members.append(
                JsonMember(key, key_start, start, end, closed, clean=len(part) == 1, rest_end=end, object=nested)
            )
        elif part and terminated and self.members:
            self.members[-1] = self.members[-1]._replace(rest_end=part[-1].end)

    def _begin(self, part: list[_Piece], value_start: int) -> None:
        if part:
            start, raw = part[0].start, self._text[part[0].start : part[-1].end]
            self._key = (content(raw) if len(part) == 1 else raw, start, value_start)
        else:
            self._key = ("", value_start, value_start)
        self._part = []

    def _may_be_key(self, part: list[_Piece]) -> bool:
        """Returns True for a string, and for a word that is the first of its line."""
        last = part[-1]
        if last.kind != "word":
            return last.kind == "string"
        before = part[-2].end if len(part) > 1 else self._key[2] if self._key else 0
        return self._text.find("\n", before, last.start) >= 0
