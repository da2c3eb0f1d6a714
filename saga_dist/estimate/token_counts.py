"""Token counts of prompt and completions: from the checkpoint's tokenizer or, without one, from character counts."""

from __future__ import annotations

import json
from dataclasses import dataclass

from saga_dist.config import RunConfig
from saga_dist.data.forced_verdict import forced_opening
from saga_dist.data.prompt_templates import VERDICTS
from saga_dist.data.prompts import PromptSpec
from saga_dist.errors import ModelError
from saga_dist.estimate.shapes import ModelShape
from saga_dist.runtime.build import build_prompt, prompt_text

PROMPT_CHARACTERS_PER_TOKEN = 3.67
"""Characters per token of the birds prompt: 2,235 characters are 609 tokens with Qwen's published vocabulary."""
ANSWER_CHARACTERS_PER_TOKEN = 3.85
"""Characters per token of an answer to that prompt: 2,586 characters of JSON are 669 tokens."""

VALUE = "medium, slightly curved"
"""Assumed description of one attribute in a completion."""
SENTENCE = "The first has a longer bill and a darker crown; the second shows white wing bars and a buff belly."
"""Assumed value of every other text field of a completion."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Token counts of one group."""

    prompt: int
    """Tokens of the prompt, both images included."""
    common_prefix: int
    """Tokens of the prompt before the first image, which are the same for all groups of a run."""
    completion: float
    """Mean tokens of a completion."""
    prompt_source: str
    """Source of the prompt's counts, as printed with them."""
    completion_source: str
    """Source of ``completion``, as printed with it."""

    @property
    def group_prefix(self) -> int:
        """Prompt tokens that replay runs once per group: all after the common prefix, except the last.

        The last one runs with every completion, because its output predicts the first generated token.
        """
        return self.prompt - self.common_prefix - 1

    @property
    def cached(self) -> int:
        """Prompt tokens that the engine finds in its prefix cache, because an earlier group put them there."""
        return self.common_prefix


def count_tokens(config: RunConfig, shape: ModelShape) -> TokenCounts:
    """Returns the token counts of a group.

    Prompt tokens are counted; completions are assumed to be as long as ``example_answer``, at most
    ``rollout.max_tokens``. With the signal ``verdict``, the opening of the answer belongs to the prompt, and a
    completion is one of the two verdicts.

    Args:
        config: configuration of the run.
        shape: sizes of the model.
    """
    spec, images = build_prompt(config), 2 * shape.tower.tokens
    text, answer = prompt_text(config, shape.family), example_answer(spec)
    if config.objective.needs_verdicts:
        text, answer = text + forced_opening(spec.verdict_key), VERDICTS[0]
    placeholder = shape.family.image_placeholder
    try:
        tokenizer = shape.family.load_tokenizer()
    except ModelError:
        markers = 2 * 2  # one before and one after each image
        before, _, after = text.partition(placeholder)
        common_prefix = round(len(before) / PROMPT_CHARACTERS_PER_TOKEN) + 1
        rest = round(len(after.replace(placeholder, "")) / PROMPT_CHARACTERS_PER_TOKEN)
        prompt = common_prefix - 1 + rest + markers + images
        completion = len(answer) / ANSWER_CHARACTERS_PER_TOKEN
        source = f"{len(text)} characters of text, {PROMPT_CHARACTERS_PER_TOKEN} per token (no tokenizer here)"
    else:
        ids = tokenizer.encode(text, add_special_tokens=False)
        image = shape.family.parsed.image_token_id
        common_prefix, prompt = ids.index(image), len(ids) - 2 + images
        completion = float(len(tokenizer.encode(answer, add_special_tokens=False)))
        source = "the checkpoint's tokenizer"
    limit = config.rollout.max_tokens
    length = f"assumed: JSON with a few words for each attribute, at most rollout.max_tokens = {limit}"
    return TokenCounts(
        prompt=prompt,
        common_prefix=common_prefix,
        completion=min(completion, float(limit)),
        prompt_source=source,
        completion_source="the verdict alone" if config.objective.needs_verdicts else length,
    )


def example_answer(spec: PromptSpec) -> str:
    """Returns a completion of plausible length: JSON with the prompt's keys and a short value for each."""
    described = dict.fromkeys(spec.vocabulary.attribute_keys, VALUE)
    values: dict[str, object] = {
        spec.key_a: described,
        spec.key_b: described,
        "confidence": "high",
        spec.verdict_key: "no",
    }
    return json.dumps({key: values.get(key, SENTENCE) for key in spec.keys})
