"""The answer in a completion: which of its JSON objects counts, and the verdict that this object gives.

The prompt asks for one JSON object and nothing else. A completion may also have text around it, a thinking block before
it, several answers, or an object around the answer. These rules choose the object (``json_scan`` has the rules for
mistakes inside it):

    rule                 reading
    -------------------  -------------------------------------------------------------------------------------------
    JSON as it stands    a text that is one JSON object, fenced or not, is read whole
    thinking             text in <think> … </think> and similar tags is ignored, and so is all text before a closing
                         tag without an opening one
    unclosed thinking    after an opening tag that is never closed, only an object that stands on lines of its own
                         at the end of the text counts: an object inside running text is a draft
    fences               a line that begins with ``` ends an unfinished object
    outer object         the verdict is looked for in the outermost object, then in the objects inside it, and so on
                         down to the first level that has it; objects in lists do not count
    missing brace        when one closing brace is missing, the answer may have become a part of the last nested
                         object; a text that ends with an indented brace was cut off instead
    last answer          of several objects with a finished verdict, the last one counts, whatever the others say
    unreadable answer    after that object, the verdict key with the other verdict, in a form that no rule reads, means
                         that there is no verdict

The verdict of an object is the value of its verdict key (case, spaces, underscores and hyphens of the key do not
matter): one word, yes, no, true or false, in any case, quotes and emphasis, with or without a full stop. A key that
occurs more than once must have equal values. All else is no verdict: "not yes", "yes and no", "yes|no", "maybe", 1.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from saga_dist.objectives.json_scan import JsonMember, JsonObject, scan_objects
from saga_dist.objectives.json_strict import load_object
from saga_dist.objectives.json_tokens import QUOTES, content

_VERDICTS = {"yes": True, "no": False, "true": True, "false": False}
_LONGEST_VERDICT = 64
"""Largest number of characters of a verdict with its quotes; a longer value is no verdict."""
_AROUND = f"{string.whitespace}\u00a0{QUOTES}*_`"
"""Characters around a word that do not change it."""
_ENDING = f"{_AROUND}.!;"
"""Characters after a word that do not change it; a question mark does."""
_NEAR = 64
"""Number of characters after a value in which a comma is looked for."""
_ANY_VERDICT = re.compile(r"\b(?:yes|no|true|false)\b", re.IGNORECASE)
_KEY_SEPARATORS = re.compile(r"[\s_-]+")
_THINKING_TAG = re.compile(
    r"[<◁](/?)(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad)[>▷]", re.IGNORECASE
)
_FENCE = re.compile(r"^[ \t]*+```[A-Za-z]*+", re.MULTILINE)
_REST_OF_TEXT = re.compile(r"[\s`]*+\Z")


@dataclass(frozen=True, slots=True)
class Answer:
    """The object of a completion that counts."""

    members: Sequence[JsonMember]
    """Members at the level of the verdict, in order."""
    verdict: bool | None
    """True for "yes" (same class), False for "no", None when the object gives no unique verdict."""


@dataclass(frozen=True, slots=True)
class _Region:
    """A range of the text that may have answers."""

    start: int
    end: int
    thinking: bool
    """True in a thinking block that is never closed."""


def find_answer(text: str, verdict_key: str, keys: Collection[str] = ()) -> Answer | None:
    """Returns the last complete answer of a completion; None when no object has a finished value of the verdict key.

    Args:
        text: one completion, untrusted, with any characters and of any length. Time is linear in its length.
        verdict_key: JSON key of the verdict, e.g. ``same_species``.
        keys: all keys at the level of the verdict. Where the closing brace of a nested object is missing, the first of
            them ends that object.
    """
    level_keys = {plain_key(key) for key in (verdict_key, *keys)}
    regions = list(_regions(text))
    answer, end = None, 0
    for region in regions:
        for found in scan_objects(text, region.start, region.end):
            if region.thinking and not _stands_alone(text, found):
                continue
            if not found.closed and found.end == region.end:
                found.members = _with_missing_brace(text, found, level_keys)
            if (later := _read_answer(text, found, plain_key(verdict_key))) is not None:
                answer, end = later, found.end
    if answer is not None and _stated_after(text, regions, end, plain_key(verdict_key)) - {answer.verdict}:
        return Answer(answer.members, None)
    return answer


def plain_key(key: str) -> str:
    """Returns a key in lower case without spaces, underscores, hyphens, quotes and emphasis."""
    return _KEY_SEPARATORS.sub("", key.strip(_AROUND)).casefold()


def _read_answer(text: str, found: JsonObject, verdict_key: str) -> Answer | None:
    """Returns the answer in an outermost object; None without a finished verdict."""
    levels = [found.members]
    while levels:
        holding = [members for members in levels if _verdict_members(members, verdict_key)]
        if holding:
            stated = [member for members in holding for member in _verdict_members(members, verdict_key)]
            verdicts = {_read_verdict(text, member) for member in stated}
            verdict = verdicts.pop() if len(verdicts) == 1 else None
            return Answer(holding[-1], verdict) if any(member.closed for member in stated) else None
        levels = (
            [member.object.members for members in levels for member in members if member.object is not None]
            if found.closed
            else []
        )
    return None


def _stated_after(text: str, regions: Sequence[_Region], end: int, verdict_key: str) -> set[bool]:
    """Returns the verdicts that directly follow the verdict key after an answer, in whatever form.

    Args:
        text: the completion.
        regions: its parts.
        end: index of the end of the last answer that was read.
        verdict_key: the plain verdict key.
    """
    pattern = _statement(verdict_key)
    return {
        _VERDICTS[stated.group(1).casefold()]
        for region in regions
        for stated in pattern.finditer(text, max(end, region.start), region.end)
    }


@cache
def _statement(verdict_key: str) -> re.Pattern[str]:
    """Returns a pattern of the verdict key, in any letters, and a verdict, with at most eight other signs between."""
    key = r"[\s_-]*+".join(map(re.escape, verdict_key))
    return re.compile(rf"(?<!\w){key}[^\w{{}}]{{0,8}}+(yes|no|true|false)\b", re.IGNORECASE)


def _with_missing_brace(text: str, found: JsonObject, level_keys: Collection[str]) -> list[JsonMember]:
    """Returns the members of an unclosed object, with a closing brace inserted where it most likely is missing.

    The last member is an object that took the answer's brace; in it, the answer's first key begins the answer's own
    members. Other unclosed objects are returned as they are.
    """
    last = found.members[-1] if found.members else None
    if last is None or last.object is None or not last.object.closed or _goes_on(text, found, last):
        return found.members
    inner = last.object.members
    first = next((index for index, member in enumerate(inner) if plain_key(member.key) in level_keys), None)
    if first is None:
        return found.members
    end = inner[first - 1].end if first else last.object.start
    description = JsonObject(last.object.start, end, closed=False, members=inner[:first])
    return [*found.members[:-1], last._replace(end=end, closed=False, object=description), *inner[first:]]


def _goes_on(text: str, found: JsonObject, last: JsonMember) -> bool:
    """Returns True when the text was cut off after the last member and does not lack a brace before.

    A comma follows, or the member's closing brace is the first of its line and indented deeper than the outermost
    object, so that it is the member's own.
    """
    if text[last.end : last.end + _NEAR].lstrip().startswith(","):
        return True
    line = text[text.rfind("\n", 0, last.end) + 1 : last.end]
    return line.strip() == "}" and len(line) - 1 > _indentation(text, found.start)


def _indentation(text: str, index: int) -> int:
    """Returns the number of white-space characters that begin the line of a character."""
    line = text[text.rfind("\n", 0, index) + 1 : index]
    return len(line) - len(line.lstrip())


def _verdict_members(members: Sequence[JsonMember], verdict_key: str) -> list[JsonMember]:
    return [member for member in members if plain_key(member.key) == verdict_key]


def _read_verdict(text: str, member: JsonMember) -> bool | None:
    """Returns the verdict in the value of a member; None when the value is no verdict, or another word follows it."""
    if not (member.closed and member.clean) or member.end - member.start > _LONGEST_VERDICT:
        return None
    if _ANY_VERDICT.search(text, member.end, member.rest_end):
        return None
    word = content(text[member.start : member.end]).lstrip(_AROUND).rstrip(_ENDING)
    return _VERDICTS.get(word.casefold())


def _stands_alone(text: str, found: JsonObject) -> bool:
    """Returns True for a closed object at the end of the text whose brace is the first character of its line."""
    if not found.closed or _REST_OF_TEXT.match(text, found.end + 1) is None:
        return False
    return text[text.rfind("\n", 0, found.start) + 1 : found.start].strip() in ("{", "")


def _regions(text: str) -> Iterator[_Region]:
    """Yields the parts of a text outside thinking blocks, divided at fences; an unclosed block is the last part.

    A text that is one JSON object is a single part, because tags and fences inside its strings mean nothing.
    """
    if load_object(text) is not None:
        yield _Region(0, len(text), thinking=False)
        return
    start, thinking = 0, False
    parts: list[_Region] = []
    for tag in _THINKING_TAG.finditer(text):
        closes = bool(tag.group(1))
        if not closes and not thinking:
            parts.append(_Region(start, tag.start(), thinking=False))
        elif closes and not thinking:
            parts.clear()
        if closes or not thinking:
            start = tag.end()
        thinking = not closes
    for part in (*parts, _Region(start, len(text), thinking)):
        yield from _between_fences(text, part)


def _between_fences(text: str, part: _Region) -> Iterator[_Region]:
    start = part.start
    for fence in _FENCE.finditer(text, part.start, part.end):
        yield _Region(start, fence.start(), part.thinking)
        start = fence.end()
    yield _Region(start, part.end, part.thinking)
