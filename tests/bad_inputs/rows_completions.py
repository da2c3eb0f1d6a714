"""Completions of the MLLM as the reward reads them: whatever they are, a reward of 0 or 1 and a counted form."""

from __future__ import annotations

import json
from collections.abc import Callable

from bad_inputs.row import BadInput, Workspace

from saga_dist.data.prompts import PromptSpec
from saga_dist.data.vocabularies import STANDIN_BIRDS
from saga_dist.objectives.reward import verdict_form
from saga_dist.objectives.reward_fn import load_reward
from saga_dist.types import ImagePair

PROMPT = PromptSpec(STANDIN_BIRDS)
SAME = ImagePair("s1-m0-p0", 0, 1, 7, 7)
KEY = PROMPT.verdict_key


def rewarded(text: str) -> Callable[[Workspace], str]:
    """Scores a completion on a pair of one class, for which "yes" is right."""

    def act(workspace: Workspace) -> str:
        value, is_correct = load_reward("verdict")(text, SAME, PROMPT)
        return f"reward {value:g}, correct {is_correct}, form {verdict_form(text, KEY)}"

    return act


def row(name: str, kind: str, text: str, says: str) -> BadInput:
    """A row whose outcome is counted."""
    return BadInput(name, kind, rewarded(text), (says,), outcome="note")


def answer(verdict: object) -> str:
    return json.dumps({**dict.fromkeys(PROMPT.keys, "words"), KEY: verdict})


NOTHING = "reward 0, correct False, form none"
REPAIRED = "reward 1, correct True, form repaired"
EMPTY = {
    "an empty completion": "",
    "a completion of white space": " \n\t ",
    "a completion of prose": "They look alike to me.",
    "an answer that was cut off before its verdict": answer("yes")[:40],
}
NO_VERDICT = {
    "a verdict that is null": answer(None),
    "a verdict that is a number": answer(1),
    "a verdict that is neither yes nor no": answer("perhaps"),
    "a verdict that is a list": answer(["yes"]),
    "a verdict that is the template's own": f'{{"{KEY}": "yes or no"}}',
}
TWO_VERDICTS = {
    "one key with both verdicts": f'{{"{KEY}": "yes", "{KEY}": "no"}}',
    "an object and a later statement of the opposite": f'{answer("yes")}\n"{KEY}": "no"',
}
OTHER_FORMS = {
    "a verdict that is a JSON boolean": answer(True),
    "a verdict in capitals": answer("YES"),
    "a verdict with a full stop": answer("Yes."),
    "a verdict in bold": answer("**yes**"),
    "a missing last brace": answer("yes")[:-1],
    "an answer within an outer object": json.dumps({"answer": json.loads(answer("yes"))}),
}
HOSTILE = {
    "a hundred thousand opening braces": "{" * 100_000,
    "a lone surrogate": f'\ud800{{"{KEY}": "maybe\udfff"}}',
    "control characters of a terminal": "\x1b[31m\x07\x00",
    "a number beyond any float": f'{{"{KEY}": 1e999999}}',
}

ROWS: list[BadInput] = [
    *(row(name, "completions without an answer", text, NOTHING) for name, text in EMPTY.items()),
    *(row(name, "answers without a verdict", text, NOTHING) for name, text in NO_VERDICT.items()),
    *(row(name, "contradictions", text, NOTHING) for name, text in TWO_VERDICTS.items()),
    *(row(name, "right verdicts in another form", text, REPAIRED) for name, text in OTHER_FORMS.items()),
    *(row(name, "hostile completions", text, NOTHING) for name, text in HOSTILE.items()),
]
