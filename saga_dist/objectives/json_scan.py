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
from collections.abc import Iterator

from saga_dist.objectives.json_members import Body, JsonMember, JsonObject, Piece
from saga_dist.objectives.json_tokens import GOES_ON, KEY_START, MISSING_LAST_QUOTE, OBJECT_START, PLAIN_MEMBER, TOKEN

_DEEPEST = 8
"""Number of levels of objects whose members are listed."""
_CLOSER = {"{": "}", "[": "]"}


def scan_objects(text: str, start: int = 0, end: int | None = None) -> Iterator[JsonObject]:
    """Yields the outermost objects with members in ``text[start:end]``, in order; indices are those of ``text``."""
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

    def objects(self) -> Iterator[JsonObject]:
        """Yields the outermost objects that have members, in order."""
        if (first := self._object_without_brace()) is not None:
            yield first
        while (opening := OBJECT_START.search(self._text, self._position, self._end)) is not None:
            if (found := self._outermost(opening.end())).members:
                yield found

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
        body = Body(self._text)
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
                body.add(Piece("list", token.start(), *self._skip(symbol)))
            elif symbol == "{":
                if not body.awaits_value and OBJECT_START.match(self._text, token.start(), self._end):
                    self._position, self._restarts = token.start(), True
                elif depth + 1 < _DEEPEST:
                    body.add(self._nested_object(token.end(), depth, token.start()))
                else:
                    body.add(Piece("object", token.start(), *self._skip(symbol)))
            elif not symbol:
                body.add(self._piece(token))
            if self._restarts:
                break
        body.end_part(terminated=False)
        return JsonObject(start, min(self._position, self._end), False, body.members)

    def _nested_object(self, start: int, depth: int, opening: int | None = None) -> Piece:
        """Returns the object whose interior begins at ``start``; its value begins at its brace, if it has one."""
        nested = self._object(start, depth + 1)
        end = nested.end + 1 if nested.closed else nested.end
        return Piece("object", start if opening is None else opening, end, nested.closed, nested)

    def _after_plain_members(self, body: Body) -> re.Match[str] | None:
        """Returns the next token, after all members of two plain strings that stand before it."""
        if body.awaits_key:
            while (member := PLAIN_MEMBER.match(self._text, self._position, self._end)) is not None:
                body.plain_member(member)
                self._position = member.end()
        return self._next()

    def _piece(self, token: re.Match[str]) -> Piece:
        kind, start = str(token.lastgroup), token.start()
        if kind == "cut" and (word := MISSING_LAST_QUOTE.match(self._text, start, self._end)) is not None:
            self._position = word.end()
            return Piece("string", start, word.end(), True)
        return Piece(kind, start, token.end(), kind == "string")

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
