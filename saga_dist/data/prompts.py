"""The comparison prompt T_inst: how the frozen MLLM is asked whether two images show the same class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from saga_dist.config.registries import PROMPT_TEMPLATES
from saga_dist.data.prompt_templates import AnswerKeys, PromptTemplate, load_template
from saga_dist.data.vocabularies import VOCABULARIES, Vocabulary, load_vocabulary
from saga_dist.errors import ConfigError

__all__ = ["QWEN_CHAT", "VOCABULARIES", "ChatFormat", "PromptSpec", "Vocabulary", "load_vocabulary", "render_prompt"]

Order = Literal["images_first", "text_first"]
ORDERS: tuple[Order, ...] = ("images_first", "text_first")


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
    """Which comparison prompt: its words, its template and where the images stand.

    Args:
        vocabulary: the words.
        variant: name of the template: ``structured`` (role, attributes, descriptions), ``generic`` (neither role nor
            attributes), or the import path of a ``PromptTemplate``.
        order: ``images_first`` (the paper's formula) or ``text_first`` (its Fig. 2), which lets the text be cached.

    Raises:
        ConfigError: unknown variant or order, or a template of the user's own that cannot be used.
    """

    vocabulary: Vocabulary
    variant: str = "structured"
    order: Order = "images_first"
    _answer: AnswerKeys = field(init=False, repr=False, compare=False)

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
        """The template that ``variant`` names."""
        return load_template(self.variant)

    @property
    def key_a(self) -> str:
        """JSON key of the description of image a, e.g. ``bird_1``; '' where images are not described."""
        return self._answer.key_a

    @property
    def key_b(self) -> str:
        """JSON key of the description of image b, e.g. ``bird_2``; '' where images are not described."""
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
    """Returns the whole user turn, ready for the tokenizer, ending where the assistant's answer begins.

    Args:
        spec: the prompt.
        image_a: the family's placeholder of the first image, e.g. ``<|vision_start|><|image_pad|><|vision_end|>``.
        image_b: the same for the second image.
        chat: the family's turn markers.

    Raises:
        ConfigError: a template of the user's own failed, or gave no text or one that holds an image.

    Source: SAGA Eq. 1, with the prompt of its Appendix in words of ours.
    """
    with PROMPT_TEMPLATES.calling(spec.variant):
        text = spec.template.render(spec.vocabulary)
    if not isinstance(text, str) or not text.strip() or image_a in text or image_b in text:
        raise ConfigError(
            f"render of {spec.variant!r} returned {text!r:.80}",
            where=PROMPT_TEMPLATES.key,
            expected="text, without the images: they stand beside it",
        )
    return compose_prompt(text, spec.vocabulary, spec.order, image_a=image_a, image_b=image_b, chat=chat)


def compose_prompt(
    text: str, vocabulary: Vocabulary, order: Order, *, image_a: str, image_b: str, chat: ChatFormat = QWEN_CHAT
) -> str:
    """Returns the user turn of a template's text and two labelled images; arguments as in ``render_prompt``."""
    label_a, label_b = (f"{vocabulary.item.capitalize()} {number}: " for number in (1, 2))
    images = f"{label_a}{image_a}\n{label_b}{image_b}\n"
    # Text first keeps every text token a constant of the run; the images then close the user's turn.
    body = images + text if order == "images_first" else f"{text}\n{images.rstrip()}"
    return chat.before_user + body + chat.after_user
