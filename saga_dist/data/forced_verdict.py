"""The forced answer: a prompt followed by the opening of the answer, up to the value of its verdict.

    <prompt>{"same_species": "   ──►   yes   or   no

The verdict comes first in this answer, whatever the order of the keys in the prompt, so no description precedes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from saga_dist.data.prompt_templates import VERDICTS
from saga_dist.errors import ModelError


class TextEncoder(Protocol):
    """The part of a tokenizer of transformers that is used here."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the token ids of a text."""


@dataclass(frozen=True, slots=True)
class ForcedVerdict:
    """Token ids of a prompt with a forced answer, and of the two verdicts that may follow."""

    prompt_ids: tuple[int, ...]
    """Prompt and opening of the answer, with one placeholder per image, and tokens with which both verdicts begin."""
    verdict_ids: Mapping[bool, tuple[int, ...]]
    """Tokens of the verdict by its meaning, True for "same class"; at least one each, and neither begins the other."""

    @property
    def num_tokens(self) -> int:
        """Tokens of both verdicts."""
        return sum(map(len, self.verdict_ids.values()))


def forced_opening(verdict_key: str) -> str:
    """Returns the opening of an answer whose first key is that of the verdict, up to the value.

    Args:
        verdict_key: JSON key of the verdict.
    """
    return f'{{{json.dumps(verdict_key)}: "'


def force_verdict(tokenizer: TextEncoder, prompt_text: str, verdict_key: str) -> ForcedVerdict:
    """Returns the prompt with its forced answer, as token ids.

    Each text is encoded as a whole, with the verdict and the quote that closes it, because tokens may reach across the
    end of the prompt, of the opening or of the verdict. Tokens with which both texts begin belong to the prompt: they
    have the same probability under both verdicts. Tokens with which both end are left out, as long as neither verdict
    then begins the other: they are the closing quote, which says nothing of the verdict, and which a model may as well
    write in one token with the comma or the brace after it.

    Args:
        tokenizer: tokenizer of the model.
        prompt_text: the whole prompt, which ends where the answer begins.
        verdict_key: JSON key of the verdict.

    Raises:
        ModelError: the tokenizer gives both texts the same tokens, or one that begins the other.
    """
    opening = prompt_text + forced_opening(verdict_key)
    yes, no = (tokenizer.encode(f'{opening}{verdict}"', add_special_tokens=False) for verdict in VERDICTS)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(yes, no, strict=False)))
    prompt_ids, yes, no = yes[:shared], yes[shared:], no[shared:]
    if _one_begins_the_other(yes, no):
        raise ModelError(
            f"{VERDICTS[0]!r} is {yes} and {VERDICTS[1]!r} is {no} after {opening[-20:]!r}",
            where="tokenizer",
            expected="tokens that tell the verdicts apart",
        )
    while yes[-1] == no[-1] and not _one_begins_the_other(yes[:-1], no[:-1]):
        yes, no = yes[:-1], no[:-1]
    return ForcedVerdict(tuple(prompt_ids), {True: tuple(yes), False: tuple(no)})


def _one_begins_the_other(one: Sequence[int], other: Sequence[int]) -> bool:
    """Returns True when the shorter of two sequences, which may be empty, is the beginning of the longer one."""
    return all(a == b for a, b in zip(one, other, strict=False))
