from __future__ import annotations

import json
import random

import pytest

from saga_dist.objectives.json_scan import scan_members
from saga_dist.objectives.reward import json_is_valid, parse_verdict, verdict_form, verdict_reward

KEY = "same_species"
ANSWER = json.dumps(
    {
        "bird_1": {"bill shape": "hooked", "note": 'says "same_species": "no"'},
        "bird_2": {"bill shape": "dagger", "same_species": "no"},
        "differences": ["bill", {"same_species": "no"}],
        "confidence": "high",
        "reasoning": "same {build}, same bill",
        "same_species": "yes",
    },
    indent=1,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"same_species": "yes"}', True),
        ('{"same_species": "no"}', False),
        ('{"same_species":" \\tYES\\n"}', True),
        ('{"same_species" :\n "No" , "more": 1}', False),
        ('{"same_\\u0073pecies": "\\u0079es"}', True),
        ('```json\n{"same_species": "yes"}\n```', True),
        ('Both {birds} look "alike: {"same_species": "yes"} which ends it.', True),
        ('[{"same_species": "yes"}]', True),
        ('{\'x\': 1} then {"same_species": "no"}', False),
        (ANSWER, True),
        (f"```json\n{ANSWER}\n``` Hope this helps!", True),
        (ANSWER.removesuffix("\n}"), True),
        ('{"a": {"b": [1, 2}, "same_species": "yes"}', True),
        ('{"a": [1, 2}, "same_species": "yes"}', True),
        ('{"a": 1,, "same_species": "yes",}', True),
        ('{"a": 1] , "same_species": "yes"}', True),
        # The key repeats: all occurrences within one answer must agree.
        ('{"same_species": "yes", "same_species": "YES"}', True),
        ('{"same_species": "yes", "same_species": "no"}', None),
        ('{"same_species": "no"} {"same_species": "yes"}', True),
        ('{"same_species": null, "same_species": "yes"}', None),
        ('{"same_species": "yes", "same_species": "ye', None),
        # Cut off before or inside the verdict.
        ('{"bird_1": {"bill shape": "hooked"', None),
        ('{"bird_1": {}, "same_species"', None),
        ('{"bird_1": {}, "same_species":', None),
        ('{"bird_1": {}, "same_species": "yes', None),
        ('{"bird_1": {}, "same_species": "yes\\', None),
        ('{"bird_1": {}, "same_species": "yes"', True),
        # Not a verdict.
        ("", None),
        ("yes", None),
        ('"same_species": "yes"', None),
        ("{}", None),
        ('{"same_species": "yes or no"}', None),
        ('{"same_species": "yes" or "no"}', None),
        ('{"same_species": "yes" or no}', None),
        ('{"same_species": "yes" "no"}', None),
        ('{"not" "same_species": "yes"}', None),
        ('{not "same_species": "yes"}', None),
        ('{"same_species": maybe "yes"}', None),
        ('{"same_species": true}', True),
        ('{"same_species": 1}', None),
        ('{"same_species": ["yes"]}', None),
        ('{"same_species": {"yes": "yes"}}', None),
        ('{"same_species": }', None),
        ('{"same_species": ""}', None),
        ("{'same_species': 'yes'}", True),
        ('{"answer": {"same_species": "yes"}}', True),
        ('{"note": "x\\"same_species\\": \\"yes\\""}', None),
        ('{"Same_Species": "yes"}', True),
        ('{"bird_1": {"bill": "a", "same_species": "yes"}', True),
        ('{"\ud800\x00": "\udfff", "same_species": "yes"}', True),
        ('{"same_species": "yes\x00"}', None),
        ('{"same_species": "yes\ud800"}', None),
    ],
)
def test_verdict(text: str, expected: bool | None) -> None:
    assert parse_verdict(text, KEY) is expected


def test_valid_json_gives_what_the_standard_parser_gives() -> None:
    generator = random.Random(3)

    def value(depth: int) -> object:
        kinds = [lambda: generator.choice(["yes", "no", 'a"b\\', "{", "},", "é\n", ""]), lambda: generator.random() * 9]
        kinds += [lambda: None, lambda: True]
        if depth < 4:
            kinds += [lambda: [value(depth + 1) for _ in range(generator.randrange(4))]] * 2
            kinds += [lambda: {key: value(depth + 1) for key in generator.sample(["k", "l", 'm"', "n:"], 3)}] * 2
        return generator.choice(kinds)()

    seen = set()
    for _ in range(500):
        document = {key: value(0) for key in generator.sample(["k", "l", 'm"', "n:", "o"], generator.randrange(1, 5))}
        text = json.dumps(document, indent=generator.choice([None, 2]), ensure_ascii=generator.random() < 0.5)
        members = scan_members(f"{generator.choice(['', 'so: ', '```json '])}{text}{generator.choice(['', ' done'])}")
        assert [member.key for member in members] == list(document)
        assert all(member.closed and member.clean for member in members)
        scanned = {
            member.key: json.loads(text[member.start - _shift(members, text) :][: member.end - member.start])
            for member in members
        }
        assert scanned == document
        expected = _verdict_of(document)
        assert parse_verdict(text, "k") is expected
        seen.add(expected)
    assert seen == {True, False, None}


def _verdict_of(document: dict[str, object]) -> bool | None:
    """Oracle: the value of "k" at the first level of nested objects that has it, where all values must agree."""
    level = [document]
    while level and not any("k" in one for one in level):
        level = [value for one in level for value in one.values() if isinstance(value, dict)]
    values = [one["k"] for one in level if "k" in one]
    words = [value if isinstance(value, str | bool) else None for value in values]
    stated = {{"yes": True, "no": False, True: True}.get(word) for word in words}
    return stated.pop() if len(stated) == 1 else None


def _shift(members: list, text: str) -> int:
    """How far the scanned text was moved to the right of ``text``."""
    return members[0].start - scan_members(text)[0].start


def test_every_prefix_of_an_answer_has_no_verdict_until_the_word_is_complete() -> None:
    complete = ANSWER.index('"yes"') + len('"yes"')
    assert {parse_verdict(ANSWER[:end], KEY) for end in range(complete)} == {None}
    assert {parse_verdict(ANSWER[:end], KEY) for end in range(complete, len(ANSWER) + 1)} == {True}


@pytest.mark.integration
@pytest.mark.parametrize(
    "unit",
    [
        '{"a":',
        '"',
        ' "a"',
        '{"',
        '\\"',
        "{",
        "{ ",
        '{"a":[',
        '{"k":"v",',
        '{"k":"v"}',
        "[",
        "]}",
        "\\",
        "\x00",
        "\ud800",
        ":",
    ],
)
def test_200_kilobytes_of_anything_neither_raise_nor_recurse(unit: str) -> None:
    much = unit * (200_000 // len(unit))
    text = '{"k": "yes", "x": ' + much
    assert parse_verdict(text, "k") in (True, None)
    assert parse_verdict(much, "other") is None
    assert not json_is_valid(text)


def test_time_is_linear() -> None:
    """Counts the characters that the scanner copies or matches, through a str subclass, instead of a clock."""

    class Counting(str):
        sliced = 0

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            piece = super().__getitem__(index)
            Counting.sliced += len(piece)
            return piece

    for unit in (' "a" ', '"a" : "b" c , ', '{"a":[ x', ": "):
        text = Counting('{"k": x' + unit * 20_000)
        Counting.sliced = 0
        scan_members(text)
        assert Counting.sliced <= 2 * len(text)


def test_rewards() -> None:
    truth = [(True, True, 1.0), (False, False, 1.0), (True, False, 0.0), (False, True, 0.0)]
    assert [verdict_reward(verdict, same) for verdict, same, _ in truth] == [reward for *_, reward in truth]
    assert verdict_reward(None, True) == verdict_reward(None, False) == 0.0
    with pytest.raises(TypeError, match="str; expected bool or None"):
        verdict_reward("yes", True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (ANSWER, "strict"),
        (f"```json\n{ANSWER}\n```", "strict"),
        (ANSWER.replace('"yes"', '"Yes"'), "repaired"),
        (ANSWER.replace('"yes"', "true"), "repaired"),
        (f"So: {ANSWER}", "repaired"),
        (ANSWER.removesuffix("\n}"), "repaired"),
        ('{"Same species": "no"}', "repaired"),
        ('{"answer": {"same_species": "no"}}', "repaired"),
        ('{"same_species": "no", "Same species": "yes"}', "none"),
        ('{"same_species": "yes|no"}', "none"),
        ('{"same_species": ["yes"]}', "none"),
        ("", "none"),
    ],
)
def test_form_of_the_verdict(text: str, form: str) -> None:
    assert verdict_form(text, KEY) == form


def test_programming_mistakes_are_named() -> None:
    with pytest.raises(TypeError, match="bytes"):
        parse_verdict(b"{}", KEY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty"):
        parse_verdict("{}", "")
    with pytest.raises(TypeError, match="NoneType"):
        json_is_valid(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (ANSWER, True),
        (f" \n{ANSWER}\n", True),
        (f"```json\n{ANSWER}\n```", True),
        (f"```\n{ANSWER}```", True),
        ('{"n": ' + "1" * 5000 + "}", True),
        (f"{ANSWER} done", False),
        (f"so {ANSWER}", False),
        (ANSWER[:-1], False),
        ('{"a": 1, "a": 1}', False),
        ('{"a": {"b": 1, "b": 2}}', False),
        ('{"a": NaN}', False),
        ("[1]", False),
        ('"yes"', False),
        ("", False),
        ('{"a": ' * 100_000, False),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", False),
    ],
)
def test_json_validity(text: str, valid: bool) -> None:
    assert json_is_valid(text) is valid


def test_json_validity_can_ask_for_keys() -> None:
    assert json_is_valid(ANSWER, ["bird_1", "bird_2", "same_species"])
    assert not json_is_valid(ANSWER, ["bird_1", "bird_3"])
