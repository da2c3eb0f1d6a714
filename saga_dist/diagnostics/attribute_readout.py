"""What the frozen MLLM can read off the encoder tokens of one image: its own distribution over each attribute's words.

The image takes both places of the comparison prompt, so that no partner has a say, and the answer is teacher-forced up
to the end of the first description:

    prompt ── {"bird_1": {"bill": " ▢ ", "crown": " ▢ ", … ▢ "}        ▢: softmax over the words of that attribute

The words before a blank are the MLLM's own likeliest ones, so nothing of the truth gets in. Prompt, cache, decoder and
attention are those of replay (``FrozenBackbone``).
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
    """The beginning of an answer with a blank for each attribute of the first image."""

    pieces: tuple[tuple[int, ...], ...]
    """A + 1 runs of token ids: before each blank, and what closes the description."""
    words: tuple[tuple[int, ...], ...]
    """For each attribute, the token id of each word that may fill its blank."""
    described_T: np.ndarray
    """bool [T]: the tokens of the filled template that describe the image, by the rule of training."""

    @property
    def blanks(self) -> list[int]:
        """Place of each blank among the T tokens."""
        return [int(end) + index for index, end in enumerate(np.cumsum([len(piece) for piece in self.pieces[:-1]]))]


@dataclass(frozen=True, slots=True)
class ReadoutResult:
    """What the MLLM said about I images, and where it looked."""

    probabilities: tuple[np.ndarray, ...]
    """For each attribute, float64 [I, V_a] over its words."""
    named_JAN: np.ndarray | None
    """float64 [J, A, N]: attention to each of the first J images while an attribute's word is written and read again,
    adding up to 1 over the image; None where it was not asked for."""
    whole_JN: np.ndarray | None
    """float64 [J, N]: mean over all tokens that describe the image, the target that training would take."""

    def hellinger(self) -> np.ndarray:
        """Returns float64 [I, sum of V_a]: square roots of the probabilities side by side, all of one length. The
        cosine of two rows is the mean Bhattacharyya coefficient over the attributes."""
        return np.sqrt(np.concatenate(self.probabilities, axis=1))

    @classmethod
    def joined(cls, parts: Sequence[ReadoutResult]) -> ReadoutResult:
        """Returns the readings of several batches, one below the other; attention of those that come first."""
        named = [part.named_JAN for part in parts if part.named_JAN is not None]
        whole = [part.whole_JN for part in parts if part.whole_JN is not None]
        return cls(
            tuple(np.concatenate(columns) for columns in zip(*(part.probabilities for part in parts), strict=True)),
            np.concatenate(named) if named else None,
            np.concatenate(whole) if whole else None,
        )

    def choices(self) -> np.ndarray:
        """Returns int64 [I, A]: the likeliest word of each attribute, as its place among the words."""
        return np.stack([probabilities.argmax(1) for probabilities in self.probabilities], axis=1)


def build_template(
    tokenizer: PreTrainedTokenizerBase, spec: PromptSpec, words: Mapping[str, Sequence[str]]
) -> AnswerTemplate:
    """Returns the template of a structured prompt's answer.

    Args:
        tokenizer: of the MLLM.
        spec: names the key of the first image.
        words: attribute key to its words, in the order of the answer.

    Raises:
        DataError: a word is not one token where it stands, so that one position does not tell its probability.
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
    """Reads images with the frozen language model.

    Args:
        backbone: the language model.
        prompt_ids: the rendered prompt, one placeholder per image.
        template: what to fill in.
        layer: decoder layer whose attention is read.
    """

    def __init__(
        self, backbone: FrozenBackbone, prompt_ids: Sequence[int], template: AnswerTemplate, *, layer: int
    ) -> None:
        self._backbone, self._prompt_ids, self._template, self._layer = backbone, prompt_ids, template, layer

    @torch.no_grad()
    def read(self, tokens: Sequence[EncoderTokens], *, num_looks: int = 0) -> ReadoutResult:
        """Returns the readings of a batch of images.

        Args:
            tokens: for each image, the payload of a pair that holds it twice; all of one grid.
            num_looks: of the first so many, read where the MLLM looked, too.
        """
        backbone, template = self._backbone, self._template
        prompt = backbone.build_layout(self._prompt_ids, tokens[0].grids)
        past = self._read_prompts(prompt, tokens)
        first_position = prompt.next_position - 1
        ids_GT = prompt.token_ids_S[-1:].expand(len(tokens), 1)
        for piece, options in zip(template.pieces, template.words, strict=False):
            ids_GT = _append(ids_GT, torch.tensor(piece).expand(len(tokens), -1))
            hidden_GTD = backbone.forward_completions(past, ids_GT, first_position).hidden_GTD
            likeliest_G = backbone.logits(hidden_GTD[:, -1])[:, list(options)].argmax(-1)
            ids_GT = _append(ids_GT, torch.tensor(options)[likeliest_G.cpu(), None])
        ids_GT = _append(ids_GT, torch.tensor(template.pieces[-1]).expand(len(tokens), -1))
        run = backbone.forward_completions(past, ids_GT, first_position, probe_layer=self._layer if num_looks else None)
        # Column t of the run reads token t - 1 of the template and predicts token t.
        probabilities = tuple(
            backbone.logits(run.hidden_GTD[:, blank])[:, list(options)].double().softmax(-1).cpu().numpy()
            for blank, options in zip(template.blanks, template.words, strict=True)
        )
        if run.probe is None:
            return ReadoutResult(probabilities, None, None)
        blanks_A, described_R = np.array(template.blanks), np.flatnonzero(template.described_T)
        columns = torch.from_numpy(np.concatenate([blanks_A, blanks_A + 1, described_R + 1])).to(backbone.device)
        named, whole = [], []
        for image in range(min(num_looks, len(tokens))):
            rows_RN = renormalised_attention(run.probe.rows(image, columns)[:, prompt.images[0]])
            predicting_AN, reading_AN, described_RN = rows_RN.split([len(blanks_A), len(blanks_A), len(described_R)])
            named.append(((predicting_AN + reading_AN) / 2).double().cpu().numpy())
            whole.append(attention_targets(described_RN).double().cpu().numpy())
        return ReadoutResult(probabilities, np.stack(named), np.stack(whole))

    def _read_prompts(
        self, prompt: PromptLayout, tokens: Sequence[EncoderTokens]
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Keys and values of each image's prompt without its last token, one below the other."""
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
