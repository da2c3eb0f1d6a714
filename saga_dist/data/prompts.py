"""The comparison prompt T_inst: how the frozen MLLM is asked whether two images show the same class."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from saga_dist.data.vocabularies import VOCABULARIES, Vocabulary, load_vocabulary
from saga_dist.errors import ConfigError

__all__ = ["QWEN_CHAT", "VOCABULARIES", "ChatFormat", "PromptSpec", "Vocabulary", "load_vocabulary", "render_prompt"]

CONFIDENCES = ("high", "medium", "low")
VERDICTS = ("yes", "no")


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The strings a model family puts around one user turn."""

    before_user: str
    after_user: str
    """Ends the user's turn and opens the assistant's."""


QWEN_CHAT = ChatFormat("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
"""Also InternVL3.5's, whose language model is Qwen3."""


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """Which comparison prompt: its words, its variant and where the images stand.

    Args:
        vocabulary: the words.
        variant: ``structured`` (role, attributes, descriptions) or ``generic`` (neither role nor attributes).
        order: ``images_first`` (the paper's formula) or ``text_first`` (its Fig. 2), which lets the text be cached.

    Raises:
        ConfigError: unknown variant or order.
    """

    vocabulary: Vocabulary
    variant: Literal["structured", "generic"] = "structured"
    order: Literal["images_first", "text_first"] = "images_first"

    def __post_init__(self) -> None:
        if self.variant not in ("structured", "generic"):
            raise ConfigError(f"variant {self.variant!r}", where="prompt", expected="structured or generic")
        if self.order not in ("images_first", "text_first"):
            raise ConfigError(f"order {self.order!r}", where="prompt", expected="images_first or text_first")

    @property
    def key_a(self) -> str:
        """JSON key of the description of image a, e.g. ``bird_1``."""
        return f"{self.vocabulary.item}_1"

    @property
    def key_b(self) -> str:
        """JSON key of the description of image b, e.g. ``bird_2``."""
        return f"{self.vocabulary.item}_2"

    @property
    def verdict_key(self) -> str:
        """JSON key of the verdict, e.g. ``same_species``."""
        return self.vocabulary.verdict_key

    @property
    def describes_images(self) -> bool:
        """True when the answer describes each image; without that L_KL has no targets."""
        return self.variant == "structured"

    @property
    def keys(self) -> tuple[str, ...]:
        """Top-level JSON keys of the answer, in order."""
        if self.describes_images:
            return (self.key_a, self.key_b, "differences", "confidence", "reasoning", self.verdict_key)
        return ("differences", "reasoning", self.verdict_key)


def render_prompt(spec: PromptSpec, *, image_a: str, image_b: str, chat: ChatFormat = QWEN_CHAT) -> str:
    """Returns the whole user turn, ready for the tokenizer, ending where the assistant's answer begins.

    Args:
        spec: the prompt.
        image_a: the family's placeholder of the first image, e.g. ``<|vision_start|><|image_pad|><|vision_end|>``.
        image_b: the same for the second image.
        chat: the family's turn markers.

    Source: SAGA Eq. 1, with the prompt of its Appendix in words of ours.
    """
    item = spec.vocabulary.item
    label_a, label_b = (f"{item.capitalize()} {number}: " for number in (1, 2))
    images = f"{label_a}{image_a}\n{label_b}{image_b}\n"
    text = _structured(spec) if spec.describes_images else _generic(spec)
    # Text first keeps every text token a constant of the run; the images then close the user's turn.
    body = images + text if spec.order == "images_first" else f"{text}\n{images.rstrip()}"
    return chat.before_user + body + chat.after_user


def _structured(spec: PromptSpec) -> str:
    words = spec.vocabulary
    article = "an" if words.expert[0].lower() in "aeiou" else "a"
    return "\n".join(
        (
            f"You are {article} {words.expert}: you identify {words.identifies} from photographs.",
            f"Specialists look at: {'; '.join(words.attributes)}.",
            f"You are given two {words.item} photographs. Do four things:",
            f"1. Describe {words.item} 1 along each of these attributes, a few words for each.",
            f"2. Describe {words.item} 2 in the same way.",
            "3. Sum up the key differences.",
            f"4. Decide whether both are of the {words.verdict_question}.",
            "Answer with one JSON object and nothing else, its keys in this order:",
            _shape(spec),
        )
    )


def _generic(spec: PromptSpec) -> str:
    words = spec.vocabulary
    return "\n".join(
        (
            f"You are given two {words.item} photographs. Sum up how they differ and decide whether both are of the "
            f"{words.verdict_question}.",
            "Answer with one JSON object and nothing else, its keys in this order:",
            _shape(spec),
        )
    )


def _shape(spec: PromptSpec) -> str:
    values: dict[str, object] = {
        spec.key_a: dict.fromkeys(spec.vocabulary.attribute_keys, "..."),
        spec.key_b: dict.fromkeys(spec.vocabulary.attribute_keys, "..."),
        "differences": "...",
        "confidence": "|".join(CONFIDENCES),
        "reasoning": "one sentence",
        spec.verdict_key: "|".join(VERDICTS),
    }
    return json.dumps({key: values[key] for key in spec.keys})
