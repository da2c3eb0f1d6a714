"""The comparison prompt T_inst, which asks the frozen MLLM whether two images show the same class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from saga_dist.config.registries import PROMPT_TEMPLATES
from saga_dist.data.prompt_templates import AnswerKeys, PromptTemplate, load_template
from saga_dist.data.vocabularies import VOCABULARIES, Vocabulary, load_vocabulary
from saga_dist.errors import ConfigError

__all__ = ["QWEN_CHAT", "VOCABULARIES", "ChatFormat", "PromptSpec", "Vocabulary", "load_vocabulary", "render_prompt"]

Order = Literal["images_first", "text_first"]
"""Order of images and text in the user turn (``prompt.order``)."""
ORDERS: tuple[Order, ...] = ("images_first", "text_first")
"""All orders."""


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The text that a model family's chat template puts around one user turn."""

    before_user: str
    """Text before the user's text; opens the user turn."""
    after_user: str
    """Text after the user's text; closes the user turn and opens the assistant turn."""


QWEN_CHAT = ChatFormat("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
"""Chat format of Qwen3-VL, and of InternVL3.5, whose language model is Qwen3."""


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """A comparison prompt: template, vocabulary, and order of images and text.

    Raises:
        ConfigError: variant or order are unknown, or a user's template cannot be used.
    """

    vocabulary: Vocabulary
    """Words of the data set: the items, their attributes, the question."""
    variant: str = "structured"
    """Name of the template: ``structured`` (role, attributes, descriptions), ``generic`` (neither role nor attributes),
    or the import path of a ``PromptTemplate``."""
    order: Order = "images_first"
    """``images_first`` (the paper's formula) or ``text_first`` (its Fig. 2), with which the text can be cached."""
    _answer: AnswerKeys = field(init=False, repr=False, compare=False)
    """Top-level keys of the answer."""

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ConfigError(f"order {self.order!r}", where="prompt", expected="images_first or text_first")
        template = load_template(self.variant)
        with PROMPT_TEMPLATES.calling(self.variant):
            answer = template.answer_keys(self.vocabulary)
        if not isinstance(answer, AnswerKeys):
            raise ConfigError(
                f"answer_keys of {self.variant!r} returned {type(answer).__name__}",
                where=PROMPT_TEMPLATES.key,
                expected="AnswerKeys",
            )
        object.__setattr__(self, "_answer", answer)

    @property
    def template(self) -> PromptTemplate:
        """The template of this variant."""
        return load_template(self.variant)

    @property
    def key_a(self) -> str:
        """JSON key of the description of image a, e.g. ``bird_1``; empty when images are not described."""
        return self._answer.key_a

    @property
    def key_b(self) -> str:
        """JSON key of the description of image b, e.g. ``bird_2``; empty when images are not described."""
        return self._answer.key_b

    @property
    def verdict_key(self) -> str:
        """JSON key of the verdict, e.g. ``same_species``."""
        return self._answer.verdict_key

    @property
    def describes_images(self) -> bool:
        """True when the answer describes each image; without that L_KL has no targets."""
        return self._answer.describes_images

    @property
    def keys(self) -> tuple[str, ...]:
        """Top-level JSON keys of the answer, in order."""
        return self._answer.keys


def render_prompt(spec: PromptSpec, *, image_a: str, image_b: str, chat: ChatFormat = QWEN_CHAT) -> str:
    """Returns the whole prompt as text for the tokenizer; it ends where the assistant's answer begins.

    Args:
        spec: the comparison prompt.
        image_a: the family's placeholder of the first image, e.g. ``<|vision_start|><|image_pad|><|vision_end|>``.
        image_b: the family's placeholder of the second image.
        chat: the family's chat format.

    Raises:
        ConfigError: a user's template raised, returned no text, or returned text with an image placeholder.

    Source: SAGA Eq. 1, with the prompt of its appendix in other words.
    """
    with PROMPT_TEMPLATES.calling(spec.variant):
        text = spec.template.render(spec.vocabulary)
    if not isinstance(text, str) or not text.strip() or image_a in text or image_b in text:
        raise ConfigError(
            f"render of {spec.variant!r} returned {text!r:.80}",
            where=PROMPT_TEMPLATES.key,
            expected="text, without the images, which are added to it",
        )
    return compose_prompt(text, spec.vocabulary, spec.order, image_a=image_a, image_b=image_b, chat=chat)


def compose_prompt(
    text: str, vocabulary: Vocabulary, order: Order, *, image_a: str, image_b: str, chat: ChatFormat = QWEN_CHAT
) -> str:
    """Returns the prompt from a template's text and two labelled images.

    Args:
        text: the template's text.
        vocabulary: vocabulary with the name of an item, for the labels of the images.
        order: order of images and text.
        image_a: placeholder of the first image.
        image_b: placeholder of the second image.
        chat: the family's chat format.
    """
    label_a, label_b = (f"{vocabulary.item.capitalize()} {number}: " for number in (1, 2))
    images = f"{label_a}{image_a}\n{label_b}{image_b}\n"
    # In text-first order, all text before the images is the same for all pairs, and the images end the user turn.
    body = images + text if order == "images_first" else f"{text}\n{images.rstrip()}"
    return chat.before_user + body + chat.after_user
