"""Attribute read-out: the frozen MLLM's distribution over the words of each attribute, given one image's tokens.

The image fills both image slots of the comparison prompt, so that no other image influences the result. The answer is
teacher-forced up to the end of the first description:

    prompt ── {"bird_1": {"bill": " ▢ ", "crown": " ▢ ", … ▢ "}        ▢: softmax over the words of that attribute

The words in earlier blanks are the MLLM's own likeliest ones; the true attributes are never part of the input. Prompt,
KV cache, decoder and attention are those of replay (``FrozenBackbone``).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from saga_dist.data.prompts import PromptSpec
from saga_dist.errors import DataError
from saga_dist.models.families.base import FrozenBackbone, PromptLayout
from saga_dist.objectives.attention import attention_targets, renormalised_attention
from saga_dist.objectives.spans import description_spans, token_masks, token_offsets_from_decode
from saga_dist.types import EncoderTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class AnswerTemplate:
    """The beginning of an answer, up to the end of the first description, with one blank token for each attribute."""

    pieces: tuple[tuple[int, ...], ...]
    """A + 1 sequences of token ids: the text before each blank, and the text that closes the description."""
    words: tuple[tuple[int, ...], ...]
    """A tuples of token ids: the words that may fill the blank of each attribute, one token each."""
    described_T: np.ndarray
    """bool [T]: True for the tokens of the filled template that describe the image, by the same rule as in training
    (``objectives.spans``)."""

    @property
    def blanks(self) -> list[int]:
        """Index of each of the A blanks among the T tokens."""
        return [int(end) + index for index, end in enumerate(np.cumsum([len(piece) for piece in self.pieces[:-1]]))]


@dataclass(frozen=True, slots=True)
class ReadoutResult:
    """The MLLM's word distributions for I images, and its attention to the first J of them."""

    probabilities: tuple[np.ndarray, ...]
    """A arrays, float64 [I, V_a]: probabilities over the V_a words of each attribute; rows add up to 1."""
    word_attention_JAN: np.ndarray | None
    """float64 [J, A, N]: attention to the image at the word of each attribute, the mean of the row that predicts the
    word and the row that has the word as its input; adds up to 1 over N. None when attention was not requested."""
    description_attention_JN: np.ndarray | None
    """float64 [J, N]: mean attention over all tokens that describe the image, which is the attention target of
    training; adds up to 1 over N. None when attention was not requested."""

    def hellinger(self) -> np.ndarray:
        """Returns float64 [I, sum of V_a]: the square roots of all probabilities, attributes concatenated.

        All rows have the same norm, and the cosine similarity of two rows is the mean Bhattacharyya coefficient over
        the attributes.
        """
        return np.sqrt(np.concatenate(self.probabilities, axis=1))

    @classmethod
    def joined(cls, parts: Sequence[ReadoutResult]) -> ReadoutResult:
        """Returns the results of several batches concatenated along the images.

        Attention is concatenated over the batches that have it, which must come first.
        """
        word = [part.word_attention_JAN for part in parts if part.word_attention_JAN is not None]
        description = [part.description_attention_JN for part in parts if part.description_attention_JN is not None]
        return cls(
            tuple(np.concatenate(columns) for columns in zip(*(part.probabilities for part in parts), strict=True)),
            np.concatenate(word) if word else None,
            np.concatenate(description) if description else None,
        )

    def choices(self) -> np.ndarray:
        """Returns int64 [I, A]: the likeliest word of each attribute, as an index into its words."""
        return np.stack([probabilities.argmax(1) for probabilities in self.probabilities], axis=1)


def build_template(
    tokenizer: PreTrainedTokenizerBase, spec: PromptSpec, words: Mapping[str, Sequence[str]]
) -> AnswerTemplate:
    """Returns the template of the answer to a structured prompt.

    Args:
        tokenizer: the MLLM's tokenizer.
        spec: the prompt; its JSON keys name the two descriptions.
        words: attribute key to the words it may take, in the order of the answer.

    Raises:
        DataError: a word is not exactly one token at its place in the answer, so that its probability cannot be read
            at one position.
    """
    text = json.dumps({spec.key_a: {attribute: options[0] for attribute, options in words.items()}})[:-1]
    pieces, rest = [], text
    for attribute, options in words.items():
        before, _, rest = rest.partition(f'"{attribute}": "{options[0]}')
        pieces.append(f'{before}"{attribute}": "')
    pieces.append(rest)
    encoded = [tuple(_encode(tokenizer, piece)) for piece in pieces]
    ids = [[tuple(_encode(tokenizer, word)) for word in options] for options in words.values()]
    for place, (options, attribute_ids) in enumerate(zip(words.values(), ids, strict=True)):
        for word, own in zip(options, attribute_ids, strict=True):
            inside = _encode(tokenizer, pieces[place] + word + pieces[place + 1])
            if len(own) != 1 or tuple(inside) != encoded[place] + own + encoded[place + 1]:
                raise DataError(f"{word!r} is not one token in the answer", expected="one, to read its probability off")
    together = [*itertools.chain(*(piece + own[0] for piece, own in zip(encoded, ids, strict=False))), *encoded[-1]]
    span, _ = description_spans(text, spec.key_a, spec.key_b)
    described_T = token_masks(token_offsets_from_decode(tokenizer, together), span).numpy()
    return AnswerTemplate(tuple(encoded), tuple(tuple(own[0] for own in options) for options in ids), described_T)


class AttributeReadout:
    """Computes the word distributions and attention of the frozen language model for single images.

    Args:
        backbone: the frozen language model.
        prompt_ids: token ids of the rendered prompt, with one placeholder for each of its two images.
        template: beginning of the answer, with one blank per attribute.
        layer: decoder layer (from 0) whose attention is returned.
    """

    def __init__(
        self, backbone: FrozenBackbone, prompt_ids: Sequence[int], template: AnswerTemplate, *, layer: int
    ) -> None:
        self._backbone, self._prompt_ids, self._template, self._layer = backbone, prompt_ids, template, layer

    @torch.no_grad()
    def read(self, tokens: Sequence[EncoderTokens], *, num_attention: int = 0) -> ReadoutResult:
        """Returns the read-out of a batch of images.

        Args:
            tokens: for each image, the encoder tokens of a pair that contains it twice; all of one grid.
            num_attention: number of images, from the first, for which the MLLM's attention is returned too.
        """
        backbone, template = self._backbone, self._template
        prompt = backbone.build_layout(self._prompt_ids, tokens[0].grids)
        past = self._prefill(prompt, tokens)
        first_position = prompt.next_position - 1
        ids_GT = prompt.token_ids_S[-1:].expand(len(tokens), 1)
        for piece, options in zip(template.pieces, template.words, strict=False):
            ids_GT = _append(ids_GT, torch.tensor(piece).expand(len(tokens), -1))
            hidden_GTD = backbone.forward_completions(past, ids_GT, first_position).hidden_GTD
            likeliest_G = backbone.logits(hidden_GTD[:, -1])[:, list(options)].argmax(-1)
            ids_GT = _append(ids_GT, torch.tensor(options)[likeliest_G.cpu(), None])
        ids_GT = _append(ids_GT, torch.tensor(template.pieces[-1]).expand(len(tokens), -1))
        run = backbone.forward_completions(
            past, ids_GT, first_position, probe_layer=self._layer if num_attention else None
        )
        # Column t of the run has token t - 1 of the template as its input and predicts token t.
        probabilities = tuple(
            backbone.logits(run.hidden_GTD[:, blank])[:, list(options)].double().softmax(-1).cpu().numpy()
            for blank, options in zip(template.blanks, template.words, strict=True)
        )
        if run.probe is None:
            return ReadoutResult(probabilities, None, None)
        blanks_A, described_R = np.array(template.blanks), np.flatnonzero(template.described_T)
        columns = torch.from_numpy(np.concatenate([blanks_A, blanks_A + 1, described_R + 1])).to(backbone.device)
        word, description = [], []
        for image in range(min(num_attention, len(tokens))):
            rows_RN = renormalised_attention(run.probe.rows(image, columns)[:, prompt.images[0]])
            predicting_AN, reading_AN, described_RN = rows_RN.split([len(blanks_A), len(blanks_A), len(described_R)])
            word.append(((predicting_AN + reading_AN) / 2).double().cpu().numpy())
            description.append(attention_targets(described_RN).double().cpu().numpy())
        return ReadoutResult(probabilities, np.stack(word), np.stack(description))

    def _prefill(
        self, prompt: PromptLayout, tokens: Sequence[EncoderTokens]
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Returns keys and values of every decoder layer for the prompts without their last token, batched by image."""
        start, stop = prompt.images[0].start, len(prompt.token_ids_S) - 1
        head = self._backbone.prefill(prompt, None, slice(0, start)) if start else None
        each = [
            self._backbone.prefill(prompt, one.values_NW.to(self._backbone.device), slice(start, stop), head)
            for one in tokens
        ]
        return tuple(
            (torch.cat([keys for keys, _ in layers]), torch.cat([values for _, values in layers]))
            for layers in zip(*each, strict=True)
        )


def _append(ids_GT: torch.Tensor, more_GT: torch.Tensor) -> torch.Tensor:
    return torch.cat([ids_GT, more_GT.to(ids_GT)], dim=1)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids
