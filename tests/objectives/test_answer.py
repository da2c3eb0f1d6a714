"""The answer in a completion: a table of completions, and deviations that may hide a verdict but never reverse it."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable

import pytest

from saga_dist.objectives import answer as answer_module
from saga_dist.objectives import json_scan
from saga_dist.objectives.answer import find_answer
from saga_dist.objectives.reward import parse_verdict
from saga_dist.objectives.spans import description_spans

KEYS = ("bird_1", "bird_2", "differences", "confidence", "reasoning", "same_species")
KEY = KEYS[-1]
A = '{"bill": "hooked", "crown": "red"}'
B = '{"bill": "dagger", "crown": "blue"}'


def full(verdict: str = '"yes"', a: str = A, b: str = B, key: str = '"same_species"') -> str:
    """An answer in the form of the prompt, with a part of it replaced."""
    return (
        f'{{"bird_1": {a}, "bird_2": {b}, "differences": ["bill", "crown"], "confidence": "high", '
        f'"reasoning": "The bird\'s bill, and {{crown}}.", {key}: {verdict}}}'
    )


YES, NO = full(), full('"no"')
LINES = json.dumps(json.loads(YES), indent=2)

# Completion, verdict, and True when the answer's two descriptions are found.
COMPLETIONS: list[tuple[str, bool | None, bool]] = [
    # The form of the prompt.
    (YES, True, True),
    (NO, False, True),
    (LINES, True, True),
    (f"```json\n{LINES}\n```", True, True),
    # Words.
    (full('"Yes."'), True, True),
    (full('"NO!"'), False, True),
    (full('" no "'), False, True),
    (full('"**yes**"'), True, True),
    (full('**"yes"**'), True, True),
    (full("**yes**"), True, True),
    (full("`no`"), False, True),
    (full('`"no"`'), False, True),
    (full("*Yes.*"), True, True),
    (full("yes"), True, True),
    (full("No."), False, True),
    (full("true"), True, True),
    (full("false"), False, True),
    (full("True"), True, True),
    (full("False"), False, True),
    (full('"true"'), True, True),
    (full('"FALSE"'), False, True),
    # Keys.
    (full(key='"Same_Species"'), True, True),
    (full(key='"same species"'), True, True),
    (full(key='"same-species"'), True, True),
    (full(key='"sameSpecies"'), True, True),
    (full(key='**"same_species"**'), True, True),
    (full(key="**Same Species**"), True, True),
    (full('"yes"**', key='**"same_species"'), True, True),
    (full(key="`same_species`"), True, True),
    (full(key="same_species"), True, True),
    (NO.replace("bird_1", "Bird 1").replace("bird_2", "Bird 2"), False, True),
    # Quotes.
    (YES.replace('"', "'"), True, True),
    (NO.replace('"', "'"), False, True),
    (repr(json.loads(YES)), True, True),
    (NO.replace('{"', "{“").replace('"', "”"), False, True),
    (re.sub('"([^"]*)"', r"“\1”", YES), True, True),
    (re.sub('"([^"]*)"', r"‘\1’", NO), False, True),
    (full(a="{'bill': 'hooked, the bird's own {tip'}"), True, True),
    (YES.replace("bill, and", "bill, same_species: no, and").replace('"', "'"), True, True),
    (full("‘yes’"), True, True),
    (full("«no»"), False, True),
    (full('"yes'), True, True),
    (f"```json\n{full(chr(34) + 'no')}\n```", False, True),
    # Commas and braces.
    (YES.replace('.", ', '." '), True, True),
    (YES.replace("}, ", "} ", 1), True, True),
    (LINES.replace('",\n', '"\n', 1), True, True),
    (LINES.replace(",\n  ", "\n  ", 1), True, True),
    (full('"yes",'), True, True),
    (NO[:-1], False, True),
    (NO[1:], False, True),
    (f"```\n{LINES[2:]}\n```", True, True),
    (full(a=A[1:]), True, True),
    (full(b=B[1:]), True, True),
    (full(a=A[:-1]), True, True),
    (full('"no"', b=B[:-1]), False, True),
    (full('"no"', b=B + "}"), False, True),
    (YES.replace('"crown"],', '"crown",'), True, True),
    (f"{{\nbird_1: {A}\nbird_2: {B}\nconfidence: high\nsame_species: no\n}}", False, True),
    # Text and objects around the answer.
    (f"Both birds' bills {{look}} alike.\n{YES}\nHope this helps!", True, True),
    (f'{{"answer": {NO}}}', False, True),
    (f'"Answer": {NO}', False, True),
    (f'{{"note": "x", "Result": {{"answer": {YES}}}}}', True, True),
    (f"[{NO}]", False, True),
    (f"<answer>{YES}</answer>", True, True),
    (f"**Answer:** {NO}", False, True),
    # Thinking.
    (f"<think>Perhaps {NO}?</think>{YES}", True, True),
    (f"<thinking>\nHooked bill {{\n</thinking>\n\n```json\n{NO}\n```", False, True),
    (f'Hmm. {{"same_species": "no"}}? No, wait.\n</think>\n{YES}', True, True),
    (f"<think>a</think> {NO} <think>b</think>", False, True),
    (f"{NO} <think>Or not.</think> Hmm.\n</think>\nI cannot tell.", None, False),
    (f"<think>\nThe bills differ.\n{NO}", False, True),
    (f"<think>\nThe bills differ, so {NO}", None, False),
    (f"<think>\nOr perhaps\n{NO}\nbut the crown", None, False),
    (full().replace("{crown}", "</think>"), True, True),
    # Several answers: the last complete one counts.
    (f"{NO}\nCorrection:\n{YES}", True, True),
    (f"{YES} {NO}", False, True),
    (f"{NO}\n{YES[:-30]}", False, True),
    (f"{NO}\n{YES[:-3]}", False, True),
    (f"{full('yes|no')}\n{YES}", True, True),
    (f"{YES}\n{full('maybe')}", None, True),
    (f"{YES[: YES.index(B) + 1]}\nLet me restart.\n{NO}", False, True),
    (NO + YES.replace('same_species"', "same_species"), None, True),
    (NO + YES.replace('same_species":', 'same_species"'), None, True),
    (f"{NO}\nSo the same species: no.", False, True),
    # An echo of the prompt.
    (full('"yes|no"'), None, True),
    (full('"yes/no"'), None, True),
    (full('"yes" or "no"'), None, True),
    (full('"yes" | "no"'), None, True),
    (full("<yes or no>"), None, True),
    (full('"yes", // or "no"\n'), None, True),
    # Hedged, negated, contradictory, or another word.
    (full('"not yes"'), None, True),
    (full("not yes"), None, True),
    (full('"!yes"'), None, True),
    (full('"yes?"'), None, True),
    (full('"yes and no"'), None, True),
    (full("yes, no"), None, True),
    (full('"yes", "no"'), None, True),
    (full('"maybe"'), None, True),
    (full('"~~yes~~"'), None, True),
    (full('"yes" !'), None, True),
    (full('["yes"]'), None, True),
    (full("null"), None, True),
    (full("1"), None, True),
    (full('"yes", "same_species": "no"'), None, True),
    (full('"yes", "Same Species": false'), None, True),
    (full(key='"not_same_species"'), None, True),
    # Cut off, or not an answer.
    (NO[:-2], None, True),
    (full("no")[:-1], None, True),
    (YES[: YES.index('"same')], None, True),
    ("yes", None, False),
    ("same_species: yes", None, False),
    ('"same_species": "yes"', None, False),
    ("The answer is yes.", None, False),
    ("", None, False),
]


@pytest.mark.parametrize(("text", "verdict", "described"), COMPLETIONS)
def test_completions(text: str, verdict: bool | None, described: bool) -> None:
    assert parse_verdict(text, KEY) is verdict
    spans = description_spans(text, "bird_1", "bird_2", verdict_key=KEY, keys=KEYS)
    if not described:
        assert find_answer(text, KEY, KEYS) is None
        return
    described_a, described_b = ("" if span is None else text[slice(*span)] for span in spans)
    for inside, own, other in ((described_a, "hooked", "dagger"), (described_b, "dagger", "hooked")):
        assert own in inside
        assert other not in inside
        assert "same_species" not in inside
        assert "reasoning" not in inside


def test_the_table_is_large_and_has_every_verdict() -> None:
    assert len(COMPLETIONS) >= 65
    assert {verdict for _, verdict, _ in COMPLETIONS} == {True, False, None}


# ------------------------------------------------------------------ deviations


Deviation = Callable[[str, random.Random], str]


def _without(mark: str) -> Deviation:
    """Drops one occurrence of a mark that stands outside strings."""

    def apply(text: str, generator: random.Random) -> str:
        places = [
            index
            for index, letter in enumerate(text)
            if letter in mark and (text[:index].count('"') - text[:index].count('\\"')) % 2 == 0
        ]
        if not places:
            return text
        place = generator.choice(places)
        return text[:place] + text[place + 1 :]

    return apply


def _word(*forms: str) -> Deviation:
    """Writes the verdict, the only quoted yes or no of an answer, in another form; ``{}`` is the word."""

    def apply(text: str, generator: random.Random) -> str:
        for word in ("yes", "no"):
            text = text.replace(f'"{word}"', generator.choice(forms).format(word, word.upper(), word == "yes"))
        return text

    return apply


def _key(*forms: str) -> Deviation:
    return lambda text, generator: text.replace('"same_species"', generator.choice(forms))


def _before(*forms: str) -> Deviation:
    return lambda text, generator: generator.choice(forms) + text


DEVIATIONS: dict[str, Deviation] = {
    "booleans": _word("{2}", '"{2}"'),
    "case": _word('"{1}"', '" {1} "'),
    "punctuation": _word('"{0}."', '"{1}!"', "{0}."),
    "emphasis": _word('"**{0}**"', "**{0}**", '**"{0}"**', "`{0}`", '_"{0}"_'),
    "no quotes": _word("{0}", "{1}"),
    "other quotes": _word("'{0}'", "“{0}”", "‘{0}’", "«{0}»", "”{0}”"),
    "single quotes": lambda text, generator: text.replace('"', "'"),
    "curly quotes": lambda text, generator: text.replace('"', "”"),
    "no comma": _without(","),
    "no brace": _without("{}"),
    "no last quote": lambda text, generator: text[:-2] + "}" if text.endswith('"}') else text,
    "key": _key('"Same_Species"', '"same species"', '"SAME-SPECIES"', '**"same_species"**', "`same_species`"),
    "outer object": lambda text, generator: f'{{"{generator.choice(["answer", "result"])}": {text}}}',
    "prose": _before("Sure: ", 'The {birds} "differ" in the bill\'s tip.\n', "Verdict: yes, no or maybe?\n"),
    "thinking": _before(
        f"<think>{NO} {YES}</think>", f'<Thinking>a {{ "b {YES}\n</Thinking>\n', f"{NO} so {YES}\n</think>\n"
    ),
    "fence": lambda text, generator: f"```json\n{text}\n```",
    "earlier answers": _before(f"{NO}\n{YES}\n", f"{YES}\n{NO}\n"),
    "lines": lambda text, generator: text.replace(', "', ',\n "'),
}


CAREFUL: dict[str, Deviation] = {
    "unclosed thinking": _before("<think>alike\n", f"<think>Perhaps {NO}, or {YES}.\n"),
    "early brace": lambda text, generator: text.replace(", ", "}, ", 1),
    "no colon": _without(":"),
    "no bracket": _without("[]"),
    "no quote": lambda text, generator: (lambda place: text[:place] + text[place + 1 :])(
        generator.choice([index for index, letter in enumerate(text) if letter == '"'] or [len(text)])
    ),
}
"""Deviations after which an answer may have no verdict."""


def _answers(generator: random.Random) -> list[tuple[str, bool]]:
    """Random answers in the form of the prompt, with the verdict first, last or in the middle."""
    answers = []
    for verdict in ("yes", "no"):
        describe = {
            name: generator.choice(["dark red", "the bird's own", "a (b)", "5 cm"]) for name in ("bill", "tail")
        }
        members: dict[str, object] = {"bird_1": describe, "bird_2": {**describe, "size": "small"}}
        members |= {"differences": ["bill", "size"], "reasoning": "It's alike; no part differs."}
        items = list(members.items())
        items.insert(generator.choice([0, 2, len(items), len(items)]), (KEY, verdict))
        answers.append((json.dumps(dict(items)), verdict == "yes"))
    return answers


@pytest.mark.parametrize("name", DEVIATIONS)
def test_one_deviation_leaves_the_verdict_readable(name: str) -> None:
    generator = random.Random(name)
    for _ in range(60):
        for text, verdict in _answers(generator):
            changed = DEVIATIONS[name](text, generator)
            assert parse_verdict(changed, KEY) is verdict, changed


def test_two_deviations_never_reverse_a_verdict() -> None:
    generator = random.Random(5)
    read = total = 0
    for first, second in itertools.product({**DEVIATIONS, **CAREFUL}.items(), repeat=2):
        for text, verdict in (pair for _ in range(6) for pair in _answers(generator)):
            changed = second[1](first[1](text, generator), generator)
            found = parse_verdict(changed, KEY)
            assert found in (verdict, None), changed
            if {first[0], second[0]}.isdisjoint(CAREFUL):
                read, total = read + (found is verdict), total + 1
    assert read > 0.85 * total, f"only {read} of {total}"


def test_a_cut_off_answer_never_has_the_other_verdict() -> None:
    generator = random.Random(6)
    found = set()
    for name in sorted(DEVIATIONS.keys() - {"earlier answers", "thinking"}):
        for text, verdict in _answers(generator):
            changed = DEVIATIONS[name](text, generator)
            results = {parse_verdict(changed[:end], KEY) for end in range(len(changed) + 1)}
            assert results <= {verdict, None}, changed
            found |= results
    assert found == {True, False, None}


# ------------------------------------------------------------------ work


UNITS = (
    '"', "'", "“", "\\", '\\"', "{", "}", "{ ", "[", "]}", ":", ",", ' "a" ', "' ", '"a":', '{"a":', '{"a":[', '{"a":"',
    '{"a" ', '{"k":"yes"}', '{"k":"yes"},', '{"a":{"b":1} ', '"a": "b" c, ', "**", "<think>", "</think>",
    "<think></think>", "\n```", "\n{}", '\n{"k":"yes"}', "{a", '{"k', "\n", "k: yes\n", '"k": "yes" ', "'a' b' ",
    '"a":"b":',
)  # fmt: skip


class Counting(str):
    """A text that counts the characters which are copied from it or searched by its methods."""

    work = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        piece = super().__getitem__(index)
        Counting.work += len(piece)
        return piece

    def find(self, *args):  # type: ignore[no-untyped-def]
        found = super().find(*args)
        Counting.work += (args[2] if found < 0 else found) - args[1]
        return found

    def rfind(self, *args):  # type: ignore[no-untyped-def]
        found = super().rfind(*args)
        Counting.work += args[2] - max(found, args[1])
        return found


class CountingPattern:
    """A pattern that counts its calls and the characters that each of them passes over."""

    def __init__(self, pattern) -> None:  # type: ignore[no-untyped-def]
        self._pattern = pattern
        self.finditer, self.sub = pattern.finditer, pattern.sub

    def search(self, text: str, start: int, end: int):  # type: ignore[no-untyped-def]
        found = self._pattern.search(text, start, end)
        Counting.work += 1 + (found.end() if found else end) - start
        return found

    def match(self, text: str, start: int, end: int | None = None):  # type: ignore[no-untyped-def]
        found = self._pattern.match(text, start, len(text) if end is None else end)
        Counting.work += 1 + (found.end() - start if found else 0)
        return found


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("prefix", ["", '{"k": ', '{"k": "yes", "x": ', "<think>\n"])
def test_work_is_linear(unit: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (json_scan, answer_module):
        for name, value in list(vars(module).items()):
            if isinstance(value, re.Pattern):
                monkeypatch.setattr(module, name, CountingPattern(value))

    def work(length: int) -> int:
        Counting.work = 0
        find_answer(Counting(prefix + unit * (length // len(unit))), "k", ("a", "k"))
        return Counting.work

    assert work(8_000) <= 4.5 * work(2_000) + 1_000
