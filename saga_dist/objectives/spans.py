"""Finds the generated tokens that describe image a and image b: the sets A_a and A_b."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch

from saga_dist.objectives.answer import find_answer, plain_key
from saga_dist.objectives.json_scan import JsonMember, JsonObject, scan_members

_REPLACEMENT = "\ufffd"
"""Character that decoders insert for bytes that are no UTF-8."""
_LONGEST_RUN = 16
"""Largest number of tokens decoded together; a UTF-8 character has at most 4 bytes, so a longer run is invalid."""


class Span(NamedTuple):
    """Half-open range of characters [start, end)."""

    start: int
    """Index of the first character."""
    end: int
    """Index after the last character."""


class Decoder(Protocol):
    """Tokenizer with a ``decode`` method, such as those of ``tokenizers`` and ``transformers``."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = ...) -> str:
        """Returns the text of the tokens."""


def description_spans(
    text: str, key_a: str, key_b: str, *, verdict_key: str | None = None, keys: Collection[str] = ()
) -> tuple[Span | None, Span | None]:
    """Returns the character ranges between the braces of the objects under ``key_a`` and ``key_b``.

    The descriptions are those of the answer whose verdict counts (``objectives.answer``). Without a verdict, the
    members of all outermost objects are considered. Of a repeated key, the first object is used. A truncated object
    extends to the end of the text. A key that is missing, or whose value is no object, gives None.

    Args:
        text: one completion, untrusted; time is linear in its length.
        key_a: JSON key of image a's description, e.g. ``bird_1``.
        key_b: JSON key of image b's description, e.g. ``bird_2``; must differ from ``key_a``.
        verdict_key: JSON key of the verdict; None for an answer without one.
        keys: all top-level keys of the answer; the next of them ends a description that lacks its closing brace.

    Raises:
        ValueError: the keys are equal.

    Source: SAGA section 3.4 (description tokens A_a, A_b).
    """
    if key_a == key_b:
        raise ValueError(f"both keys are {key_a!r}; expected one key per image")
    members = described_members(text, (key_a, key_b, *keys), verdict_key=verdict_key)
    objects = (description(members, key) for key in (key_a, key_b))
    span_a, span_b = (None if found is None else Span(found.start, found.end) for found in objects)
    return span_a, span_b


def described_members(text: str, keys: Collection[str], *, verdict_key: str | None) -> Sequence[JsonMember]:
    """Returns the members of the answer whose verdict counts; without a verdict, those of all outermost objects.

    Args:
        text: one completion, untrusted; time is linear in its length.
        keys: top-level keys of the answer.
        verdict_key: JSON key of the verdict; None for an answer without one.
    """
    answer = find_answer(text, verdict_key, keys) if verdict_key else None
    return scan_members(text) if answer is None else answer.members


def description(members: Sequence[JsonMember], key: str) -> JsonObject | None:
    """Returns the first object under a key; a key in other letters counts when none is exact. None without an object.

    Args:
        members: members of an answer.
        key: JSON key of the description, e.g. ``bird_1``.
    """
    objects = [(member.key, member.object) for member in members if member.object is not None]
    exact = [found for name, found in objects if name == key]
    similar = [found for name, found in objects if plain_key(name) == plain_key(key)]
    return next(iter([*exact, *similar]), None)


def token_masks(offsets_T2: torch.Tensor, span: Span | None) -> torch.Tensor:
    """Returns bool [T], True for tokens that share at least one character with the span.

    A token across an edge of the span (``{"`` or ``"},``) is True when a part of it lies inside. Empty tokens (special
    tokens) are False.

    Args:
        offsets_T2: [T, 2], integers, half-open character ranges of the tokens.
        span: range in the same text; None gives all False.

    Raises:
        ValueError: offsets are not integers of shape [T, 2].
    """
    if offsets_T2.ndim != 2 or offsets_T2.shape[1] != 2 or offsets_T2.is_floating_point():
        raise ValueError(f"offsets are {offsets_T2.dtype} {tuple(offsets_T2.shape)}; expected integers [T, 2]")
    start_T, end_T = offsets_T2.unbind(1)
    if span is None:
        return torch.zeros_like(start_T, dtype=torch.bool)
    return torch.clamp(start_T, min=span.start) < torch.clamp(end_T, max=span.end)


def token_offsets(pieces: Sequence[str]) -> torch.Tensor:
    """Returns the character ranges of the pieces in their concatenation, int64 [T, 2]."""
    return _offsets_from_ends(list(accumulate(map(len, pieces))), [False] * len(pieces), pieces)


def token_offsets_from_decode(tokenizer: Decoder, token_ids: Sequence[int]) -> torch.Tensor:
    """Returns the character range of each token in the decoded text, int64 [T, 2].

    The text is ``tokenizer.decode(ids, skip_special_tokens=True)``. With byte-level tokenizers, a character may be
    divided over several tokens; each of them gets the range of the whole character. Special tokens get an empty range.
    The cost is one decode per distinct token, and a few more for divided characters. Only a tokenizer whose decoded
    tokens do not concatenate to the text (e.g. one that joins words with spaces) takes quadratic time. Bytes that are
    no UTF-8 may make a range one character too long.

    Args:
        tokenizer: tokenizer of the model.
        token_ids: [T], generated ids.
    """
    ids = [int(token_id) for token_id in token_ids]
    text = _decode(tokenizer, ids)
    piece_of = {token_id: _decode(tokenizer, [token_id]) for token_id in set(ids)}
    pieces = [piece_of[token_id] for token_id in ids]
    if "".join(pieces) == text and _REPLACEMENT not in text:
        return token_offsets(pieces)
    ends, partial = _ends_by_run(tokenizer, ids, pieces)
    if not ends or ends[-1] != len(text):
        prefixes = [_decode(tokenizer, ids[: count + 1]) for count in range(len(ids))]
        partial = [prefix.endswith(_REPLACEMENT) for prefix in prefixes]
        ends = [len(prefix) for prefix in prefixes]
    return _offsets_from_ends(ends, partial, pieces)


def _ends_by_run(tokenizer: Decoder, ids: list[int], pieces: list[str]) -> tuple[list[int], list[bool]]:
    """Returns the length of the text after each token, and flags that are True where its last character is incomplete.

    A token whose own decoding has no replacement character begins and ends at character boundaries. So only the runs of
    tokens between such tokens have to be decoded together.
    """
    ends: list[int] = []
    partial: list[bool] = []
    length, run_start, run_base = 0, 0, 0
    for index, piece in enumerate(pieces):
        inside_run = index > run_start
        if not inside_run:
            run_start, run_base = index, length
        is_whole = _REPLACEMENT not in piece
        run_text = piece if is_whole and not inside_run else _decode(tokenizer, ids[run_start : index + 1])
        length = run_base + len(run_text)
        incomplete = run_text.endswith(_REPLACEMENT)
        ends.append(length)
        partial.append(incomplete)
        if not incomplete or index + 1 - run_start >= _LONGEST_RUN:
            run_start = index + 1
    return ends, partial


def _offsets_from_ends(ends: Sequence[int], partial: Sequence[bool], pieces: Sequence[str]) -> torch.Tensor:
    """Returns the ranges [T, 2] of tokens from the lengths of the text after them.

    The range of a token that continues an incomplete character includes that character.
    """
    offsets: list[tuple[int, int]] = []
    previous_end, incomplete = 0, False
    for end, is_partial, piece in zip(ends, partial, pieces, strict=True):
        if not piece and end == previous_end:  # a special token, which may be in the middle of a character
            offsets.append((end, end))
            continue
        continues = incomplete and _REPLACEMENT in piece
        offsets.append((min(previous_end - continues, end), end))
        previous_end, incomplete = end, is_partial
    return torch.tensor(offsets, dtype=torch.int64).reshape(-1, 2)


def _decode(tokenizer: Decoder, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)
