"""Where the forced answer ends and the verdicts begin, for tokenizers that cut text in different places."""

from __future__ import annotations

import re

import pytest

from saga_dist.data.forced_verdict import force_verdict, forced_opening
from saga_dist.errors import ModelError


class Pieces:
    """Tokenizer with a token for each match of a pattern; ids are numbered as they appear."""

    def __init__(self, pattern: str) -> None:
        self._pattern, self.ids = pattern, dict[str, int]()

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [self.ids.setdefault(piece, len(self.ids)) for piece in re.findall(self._pattern, text)]

    def words(self, ids: tuple[int, ...]) -> list[str]:
        names = {number: piece for piece, number in self.ids.items()}
        return [names[number] for number in ids]


@pytest.mark.parametrize(
    ("pattern", "opening", "yes", "no"),
    [
        # a token for each word and for what is between words: one reaches across the end of the prompt, and the
        # closing quote, with which both verdicts end, is left out
        (r"\w+|\W+", ['?{"', "same", '": "'], ["yes"], ["no"]),
        # a verdict of several tokens
        (r".", [*'{"same": "'], ["y", "e", "s"], ["n", "o"]),
        # the quote before the value in one token with its first letter
        (r'"[yn]|\w+|.', ["{", '"', "same", '"', ":", " "], ['"y', "es"], ['"n', "o"]),
        # the quotes around the value in one token with it
        (r'"(?:yes|no)"|\w+|.', ["{", '"', "same", '"', ":", " "], ['"yes"'], ['"no"']),
    ],
)
def test_texts_are_encoded_as_a_whole(pattern: str, opening: list[str], yes: list[str], no: list[str]) -> None:
    tokenizer = Pieces(pattern)
    forced = force_verdict(tokenizer, "a?", "same")
    prompt = tokenizer.words(forced.prompt_ids)
    assert "".join(prompt).startswith("a?")
    assert prompt[-len(opening) :] == opening
    assert tokenizer.words(forced.verdict_ids[True]) == yes
    assert tokenizer.words(forced.verdict_ids[False]) == no
    assert forced.num_tokens == len(yes) + len(no)


class Fixed:
    """Tokenizer that gives two texts, told apart by their verdict, these tokens."""

    def __init__(self, yes: list[int], no: list[int]) -> None:
        self._yes, self._no = yes, no

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self._yes if "yes" in text else self._no


def test_a_first_token_of_both_verdicts_belongs_to_the_prompt() -> None:
    forced = force_verdict(Fixed([1, 2, 9, 5, 3], [1, 2, 9, 6, 3]), "", "same")
    assert forced.prompt_ids == (1, 2, 9)
    assert forced.verdict_ids == {True: (5,), False: (6,)}


@pytest.mark.parametrize(
    ("yes", "no", "verdicts"),
    [
        ([1, 5, 3], [1, 5, 6, 3], {True: (3,), False: (6, 3)}),  # without its end, yes would begin no
        ([1, 5, 7, 3], [1, 6, 7, 3], {True: (5,), False: (6,)}),
        ([1, 3], [1, 6, 3], {True: (3,), False: (6, 3)}),
    ],
)
def test_a_shared_end_is_left_out_while_neither_begins_the_other(
    yes: list[int], no: list[int], verdicts: dict[bool, tuple[int, ...]]
) -> None:
    assert force_verdict(Fixed(yes, no), "", "same").verdict_ids == verdicts


@pytest.mark.parametrize(("yes", "no"), [([1, 2], [1, 2]), ([1, 2], [1, 2, 3])])
def test_verdicts_that_cannot_be_told_apart_are_one_line(yes: list[int], no: list[int]) -> None:
    with pytest.raises(ModelError, match=r"^tokenizer: 'yes' is \[\].*; expected tokens that tell the verdicts apart$"):
        force_verdict(Fixed(yes, no), "", "same")


def test_the_key_is_json() -> None:
    assert forced_opening("same_species") == '{"same_species": "'
    assert forced_opening('a"b') == '{"a\\"b": "'
