from __future__ import annotations

import itertools
import json
import random
import re

import pytest
import torch

from saga_dist.objectives.spans import (
    Span,
    description_spans,
    token_masks,
    token_offsets,
    token_offsets_from_decode,
)
from saga_dist.standin.tokenizer import build_tokenizer

TEXT = '{"bird_1": {"bill": "red"}, "bird_2": {"bill": "a } \\" {"}, "same_species": "no"}'


def _inside(text: str) -> list[str | None]:
    return [None if span is None else text[slice(*span)] for span in description_spans(text, "bird_1", "bird_2")]


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        (TEXT, '"bill": "red"', '"bill": "a } \\" {"'),
        (f"```json\n{TEXT}\n```", '"bill": "red"', '"bill": "a } \\" {"'),
        ('{"bird_1": {"bill": "red"}, "bird_2": {"bil', '"bill": "red"', '"bil'),
        ('{"bird_1": {"bill": "re', '"bill": "re', None),
        ('{"bird_1": {', "", None),
        ('{"bird_1": ', None, None),
        ('{"bird_1": {}, "bird_2": []}', "", None),
        ('{"bird_1": "red bill", "bird_2": {"x": {"y": 1}}}', None, '"x": {"y": 1}'),
        ('{"wrap": {"bird_1": {"a": 1}}}', None, None),
        ('{"bird_2": {"b": 2}, "bird_1": {"a": 1}}', '"a": 1', '"b": 2'),
        ('{"bird_1": {"a": 1}, "bird_1": {"a": 2}}', '"a": 1', None),
        ('{"bird_1": {"a": [}, "bird_2": {"b": 1}}', '"a": [', '"b": 1'),
        ("", None, None),
    ],
)
def test_spans(text: str, first: str | None, second: str | None) -> None:
    assert _inside(text) == [first, second]


def test_without_a_verdict_all_objects_are_considered() -> None:
    text = '{"bird_1": {"bill": "red"}} {"bird_2": {"bill": "bl'
    spans = description_spans(text, "bird_1", "bird_2", verdict_key="same_species")
    assert [text[slice(*span)] for span in spans if span] == ['"bill": "red"', '"bill": "bl']


def test_equal_keys_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="bird_1"):
        description_spans(TEXT, "bird_1", "bird_1")


def test_mask_takes_every_token_that_overlaps_the_interior() -> None:
    pieces = ['{"bird_1": ', '{"', 'bill": "', "", 'red"', "},", ' "bird_2"', "..."]
    span = description_spans("".join(pieces), "bird_1", "bird_2")[0]
    offsets_T2 = token_offsets(pieces)
    assert offsets_T2[:3].tolist() == [[0, 11], [11, 13], [13, 21]]
    assert token_masks(offsets_T2, span).tolist() == [False, True, True, False, True, False, False, False]
    assert token_masks(offsets_T2, None).tolist() == [False] * 8
    assert token_masks(offsets_T2, Span(12, 12)).tolist() == [False] * 8
    assert token_masks(token_offsets([]), span).shape == (0,)


@pytest.mark.parametrize("offsets", [torch.zeros(3), torch.zeros(3, 3, dtype=torch.int64), torch.zeros(3, 2)])
def test_mask_refuses_other_shapes(offsets: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="offsets are"):
        token_masks(offsets, Span(0, 1))


def _byte_level_bpe():  # type: ignore[no-untyped-def]
    """A real byte-level BPE whose merges cross characters: tokens may hold a whole letter and half of the next one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges = []
    for text in ("xé", " ß", "é", "日", "}é"):
        symbols = list(to_bytes.pre_tokenize_str(text)[0][0])
        merges.append((symbols[0], symbols[1]))
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    for first, second in merges:
        vocabulary.setdefault(first + second, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = to_bytes, decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_end|>"])
    return tokenizer


def _expected(tokenizer, text: str, ids: list[int]) -> list[list[int]]:  # type: ignore[no-untyped-def]
    """Oracle by bytes: each character covers some bytes, each token covers some bytes."""
    special = tokenizer.token_to_id("<|im_end|>")
    owner = [index for index, letter in enumerate(text) for _ in letter.encode()]
    position, offsets = 0, []
    for token_id in ids:
        length = 0 if token_id == special else len(tokenizer.id_to_token(token_id))  # one letter of the alphabet a byte
        if length:
            offsets.append([owner[position], owner[position + length - 1] + 1])
        else:
            end = owner[position - 1] + 1 if position else 0
            offsets.append([end, end])
        position += length
    return offsets


@pytest.mark.parametrize("build", [_byte_level_bpe, build_tokenizer])
def test_offsets_of_characters_spread_over_tokens(build) -> None:  # type: ignore[no-untyped-def]
    tokenizer = build()
    end = tokenizer.token_to_id("<|im_end|>")
    generator = random.Random(0)
    split = 0
    for _ in range(200):
        text = "".join(generator.choice('ab {}":,éßx日本🐦🦜\n') for _ in range(generator.randrange(40)))
        ids = [*tokenizer.encode(text).ids, end]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        offsets = token_offsets_from_decode(tokenizer, ids).tolist()
        assert offsets == _expected(tokenizer, text, ids)
        split += any(first[1] > second[0] for first, second in itertools.pairwise(offsets))
    assert split > 100


def test_a_special_token_inside_a_character_is_empty() -> None:
    tokenizer = _byte_level_bpe()
    end = tokenizer.token_to_id("<|im_end|>")
    bird = tokenizer.encode("🐦").ids
    ids = [*tokenizer.encode("ab").ids, *bird[:2], end, *bird[2:]]
    assert token_offsets_from_decode(tokenizer, ids).tolist() == [
        [0, 1],
        [1, 2],
        [2, 3],
        [2, 3],
        [3, 3],
        [2, 3],
        [2, 3],
    ]


def test_a_stray_byte_does_not_stretch_the_next_token() -> None:
    tokenizer = _byte_level_bpe()
    stray = tokenizer.encode("🐦").ids[1]
    ids = [stray, *tokenizer.encode("ab").ids, stray]
    assert token_offsets_from_decode(tokenizer, ids).tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]


def test_noise_covers_every_character_and_stays_in_order() -> None:
    tokenizer = _byte_level_bpe()
    generator = random.Random(1)
    for _ in range(100):
        ids = [generator.randrange(tokenizer.get_vocab_size()) for _ in range(generator.randrange(1, 80))]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        offsets = token_offsets_from_decode(tokenizer, ids).tolist()
        assert len(offsets) == len(ids)
        assert all(0 <= start <= end <= len(text) for start, end in offsets)
        assert {place for start, end in offsets for place in range(start, end)} == set(range(len(text)))
        assert [end for _, end in offsets] == sorted(end for _, end in offsets)


def test_a_decoder_that_joins_words_with_spaces() -> None:
    class Words:
        """The first piece of a decode loses its leading space, as with SentencePiece."""

        words = ("{", " a", " bird", "}")

        def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
            return "".join(self.words[token_id] for token_id in token_ids).lstrip(" ")

    offsets = token_offsets_from_decode(Words(), [1, 2, 0, 2, 3])
    assert Words().decode([1, 2, 0, 2, 3]) == "a bird{ bird}"
    assert offsets.tolist() == [[0, 1], [1, 6], [6, 7], [7, 12], [12, 13]]


def test_stand_in_answer_end_to_end() -> None:
    tokenizer = build_tokenizer()
    text = json.dumps({"bird_1": {"bill": "röt"}, "bird_2": {"bill": "blue"}, "same_species": "no"})
    ids = tokenizer.encode(text.encode("utf-8").decode()).ids
    offsets_T2 = token_offsets_from_decode(tokenizer, ids)
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    for span in description_spans(decoded, "bird_1", "bird_2"):
        assert span is not None
        mask_T = token_masks(offsets_T2, span)
        chosen = [token_id for token_id, inside in zip(ids, mask_T, strict=True) if inside]
        assert decoded[slice(*span)] in tokenizer.decode(chosen)
        assert 0 < len(chosen) < len(ids) / 2


ANSWER_KEYS = ("bird_1", "bird_2", "reasoning", "same_species")
ANSWER = (
    '{"bird_1": {"bill": "hooked", "tail": "été"}, "bird_2": {"bill": "dagger"}, "reasoning": "It differs.", '
    '"same_species": "no"}'
)
DRAFT = '{"bird_1": {"bill": "draft"}, "bird_2": {"bill": "draft"}, "same_species": "yes"}'


@pytest.mark.parametrize(
    "text",
    [
        ANSWER,
        ANSWER.replace('"', "'"),
        re.sub('"([^"]*)"', r"“\1”", ANSWER),
        ANSWER.replace("bird_", "Bird "),
        f'{{"answer": {ANSWER}}}',
        ANSWER[1:],
        ANSWER[:-1],
        ANSWER.replace('é"}', 'é"'),
        ANSWER.replace('r"}', 'r"'),
        ANSWER.replace('{"bill": "h', '"bill": "h'),
        ANSWER.replace("}, ", "} "),
        f"<think>🐦 {DRAFT} {{</think>\n{ANSWER}",
        f"{DRAFT}\n日本 ```json\n{ANSWER}\n```",
        f"{DRAFT}\n{ANSWER.replace(chr(34) + 'no', 'no' + chr(34))}",
    ],
)
@pytest.mark.parametrize("build", [_byte_level_bpe, build_tokenizer])
def test_tokens_of_a_description_in_a_tolerated_form(text: str, build) -> None:  # type: ignore[no-untyped-def]
    """Token by token: the masks cover exactly the tokens that overlap the two descriptions of the last answer."""
    tokenizer = build()
    ids = tokenizer.encode(text).ids
    offsets_T2 = token_offsets_from_decode(tokenizer, ids)
    spans = description_spans(text, "bird_1", "bird_2", verdict_key="same_species", keys=ANSWER_KEYS)
    start = text.rindex("hooked")
    for span, first, last in zip(spans, ("bill", "bill"), ("été", "dagger"), strict=True):
        place = text.rindex(first, 0, start if last == "été" else text.rindex("dagger"))
        begin, end = place - 1, text.rindex(last) + len(last) + 1  # with the quotes around them
        expected = [int(a) < end and int(b) > begin and a < b for a, b in offsets_T2.tolist()]
        assert token_masks(offsets_T2, span).tolist() == expected
