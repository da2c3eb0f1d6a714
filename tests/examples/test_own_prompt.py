"""The example prompt: its words, its contract, and a training in which engine and replay read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from saga_dist.data.prompts import PromptSpec, render_prompt
from saga_dist.data.vocabularies import STANDIN_BIRDS
from saga_dist.testing import check_prompt_template
from saga_dist.workers.engines.transformers_engine import TransformersEngine
from saga_dist.workers.replay import ReplayWorker

NAME = "own_prompt:DESCRIBE_AND_JUDGE"
PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
TEXT = """\
<|im_start|>user
Bird 1: <|vision_start|><|image_pad|><|vision_end|>
Bird 2: <|vision_start|><|image_pad|><|vision_end|>
Describe each bird: bill; crown; breast; wing; tail; legs.
Then say whether both are of the same species.
Answer with one JSON object and nothing else, its keys in this order:
{"bird_1": {"bill": "...", "crown": "...", "breast": "...", "wing": "...", "tail": "...", "legs": "..."}, \
"bird_2": {"bill": "...", "crown": "...", "breast": "...", "wing": "...", "tail": "...", "legs": "..."}, \
"same_species": "yes|no"}<|im_end|>
<|im_start|>assistant
"""


@pytest.mark.usefixtures("example")
def test_word_for_word() -> None:
    spec = PromptSpec(STANDIN_BIRDS, variant=NAME)
    assert render_prompt(spec, image_a=PLACEHOLDER, image_b=PLACEHOLDER) == TEXT
    assert spec.describes_images
    assert json.loads(TEXT.split("\n")[6].removesuffix("<|im_end|>")).keys() == set(spec.keys)


def test_the_contract(example: Callable[[str], ModuleType]) -> None:
    check_prompt_template(example("own_prompt").DESCRIBE_AND_JUDGE)


@pytest.mark.integration
@pytest.mark.usefixtures("example")
def test_two_steps_of_training(dry_run_and_train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[str, str] = {}

    def noting(kind: type) -> Callable[..., None]:
        make = kind.__init__

        def init(self: Any, *arguments: Any, prompt_text: str, **others: Any) -> None:
            read[kind.__name__] = prompt_text
            make(self, *arguments, prompt_text=prompt_text, **others)

        return init

    for kind in (TransformersEngine, ReplayWorker):
        monkeypatch.setattr(kind, "__init__", noting(kind))
    run = dry_run_and_train(f"prompt.variant={NAME}", "prompt.order=images_first")
    assert read == {"TransformersEngine": TEXT, "ReplayWorker": TEXT}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows if "loss/dml" in row] == [1, 2]
