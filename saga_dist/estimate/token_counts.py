"""How many tokens a prompt and an answer have: by the checkpoint's tokenizer, or by the letter where there is none."""

from __future__ import annotations

import json
from dataclasses import dataclass

from saga_dist.config import RunConfig
from saga_dist.data.prompts import PromptSpec
from saga_dist.errors import ModelError
from saga_dist.estimate.shapes import ModelShape
from saga_dist.runtime.build import build_prompt, prompt_text

PROMPT_LETTERS_PER_TOKEN = 3.67
ANSWER_LETTERS_PER_TOKEN = 3.85
"""Of the birds prompt and of an answer to it, counted once with Qwen's published vocabulary: 2,235 letters are 609
tokens, 2,586 letters of JSON 669."""

VALUE = "medium, slightly curved"
SENTENCE = "The first has a longer bill and a darker crown; the second shows white wing bars and a buff belly."
"""What an answer says of an attribute, and at the end: an assumption, until a run has measured its answers."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Token counts of one group."""

    prompt: int
    """P, both images' tokens included."""
    head: int
    """Of those, before the first image: a constant of the run."""
    completion: float
    """Mean tokens of a completion."""
    prompt_source: str
    completion_source: str

    @property
    def prefix(self) -> int:
        """Prompt tokens that replay runs for every group: after the head, but for the last, which goes with the
        completions."""
        return self.prompt - self.head - 1

    @property
    def cached(self) -> int:
        """Prompt tokens that the engine has in its prefix cache from the group before."""
        return self.head


def count_tokens(config: RunConfig, shape: ModelShape) -> TokenCounts:
    """Returns the token counts of a group of this configuration."""
    text, images = prompt_text(config, shape.family), 2 * shape.tower.tokens
    placeholder = shape.family.image_placeholder
    answer = example_answer(build_prompt(config))
    try:
        tokenizer = shape.family.load_tokenizer()
    except ModelError:
        markers = 2 * 2  # one before and one after each image
        before, _, after = text.partition(placeholder)
        head = round(len(before) / PROMPT_LETTERS_PER_TOKEN) + 1
        prompt = head - 1 + round(len(after.replace(placeholder, "")) / PROMPT_LETTERS_PER_TOKEN) + markers + images
        completion = len(answer) / ANSWER_LETTERS_PER_TOKEN
        source = f"{len(text)} letters of text, {PROMPT_LETTERS_PER_TOKEN} a token (no tokenizer here)"
    else:
        ids = tokenizer.encode(text, add_special_tokens=False)
        image = shape.family.parsed.image_token_id
        head, prompt = ids.index(image), len(ids) - 2 + images
        completion = float(len(tokenizer.encode(answer, add_special_tokens=False)))
        source = "the checkpoint's tokenizer"
    longest = config.rollout.max_tokens
    return TokenCounts(
        prompt=prompt,
        head=head,
        completion=min(completion, float(longest)),
        prompt_source=source,
        completion_source=f"assumed: JSON with a few words for each attribute, at most rollout.max_tokens = {longest}",
    )


def example_answer(spec: PromptSpec) -> str:
    """Returns an answer of plausible length."""
    described = dict.fromkeys(spec.vocabulary.attribute_keys, VALUE)
    values: dict[str, object] = {
        spec.key_a: described,
        spec.key_b: described,
        "confidence": "high",
        spec.verdict_key: "no",
    }
    return json.dumps({key: values.get(key, SENTENCE) for key in spec.keys})
