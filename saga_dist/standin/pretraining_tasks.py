"""Training tasks of the stand-in: batches of pre-training birds with their labels, and the losses on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from saga_dist.standin.birds import NUM_FLOWER_TYPES
from saga_dist.standin.language import COLOR_WORDS, NUM_VALUES, PARTS, answer_text, verdict_first_text
from saga_dist.standin.pair_model import END_OF_TURN, PairModel
from saga_dist.standin.world import BirdSplit

MAX_SHIFT = 5
"""Largest random shift of an image in pixels, along each axis."""
PART_REACH = 9.0
"""Largest distance in pixels, along both axes, from a token's centre to that of a part which is the token's label."""
GROUNDING_REACH = 11.0
"""Largest distance in pixels, along both axes, from the centre of a named part to those of its tokens."""
NEUTRAL_BAND = 5.0
"""Width in pixels of the band beyond ``PART_REACH`` whose tokens have no label, because they show a part in part."""
FAR_WEIGHT = 0.15
"""Weight in the loss of a token with the label "nothing"; there are many more of these."""


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Shifted images and their labels."""

    images: np.ndarray
    """uint8 [I, 80, 80, 3]."""
    values_IA: torch.Tensor
    """int64 [I, A] in 0..3, value of each part."""
    part_centres: torch.Tensor
    """float32 [I, A, 2]: (x, y) in pixels."""
    flower_types: torch.Tensor
    """int64 [I] in 0..15."""
    flower_centres: torch.Tensor
    """float32 [I, 8, 2]: (x, y) in pixels; rows without a flower hold coordinates far outside the image."""


@dataclass(frozen=True, slots=True)
class PairTask:
    """Pairs of a batch of images and the answers to learn."""

    first: np.ndarray
    """int64 [P], index into the batch of bird 1; empty for a task without images."""
    second: np.ndarray
    """int64 [P], index into the batch of bird 2; empty for a task without images."""
    answers_PT: torch.Tensor
    """int64 [P, T], token ids of the answers, the end of turn included."""
    loss_mask_PT: torch.Tensor
    """float32 [P, T]: 0 for words that are context only and add nothing to the loss, else 1."""


class BirdLibrary:
    """Draws batches from the pre-training images.

    Args:
        split: images of the pre-training species, equally many per species, sorted by species.
    """

    def __init__(self, split: BirdSplit) -> None:
        self._split = split
        self._images_per_species = len(split.labels) // (int(split.labels[-1]) + 1)
        self.species = split.attributes[:: self._images_per_species]
        """int64 [C, A], part values of each species."""
        self._index = {tuple(code): index for index, code in enumerate(self.species.tolist())}

    def draw(self, generator: np.random.Generator, species: np.ndarray) -> ImageBatch:
        """Returns one random image of each species, shifted by up to ``MAX_SHIFT`` pixels.

        Args:
            generator: source of the random choices.
            species: int64 [I], indices into ``self.species``.
        """
        chosen = species * self._images_per_species + generator.integers(0, self._images_per_species, len(species))
        shifts = generator.integers(-MAX_SHIFT, MAX_SHIFT + 1, (len(species), 2))
        images = self._split.images[chosen].copy()
        for image, (down, right) in zip(images, shifts, strict=True):
            image[:] = np.roll(image, (down, right), axis=(0, 1))
        offsets = torch.from_numpy(shifts[:, None, ::-1].astype(np.float32))
        return ImageBatch(
            images=images,
            values_IA=torch.from_numpy(self._split.attributes[chosen]),
            part_centres=torch.from_numpy(self._split.part_centres[chosen]) + offsets,
            flower_types=torch.from_numpy(self._split.flower_types[chosen]),
            flower_centres=torch.from_numpy(self._split.flower_centres[chosen]) + offsets,
        )

    def related_species(self, generator: np.random.Generator, num_pairs: int) -> np.ndarray:
        """Returns int64 [2 * num_pairs] species indices in couples, half of them equal, half related.

        Species are related when they differ in one to three parts.
        """
        couples: list[int] = []
        for base in generator.integers(0, len(self.species), num_pairs):
            values = self.species[base].copy()
            if generator.random() < 0.5:
                for part in generator.permutation(len(PARTS))[: generator.integers(1, 4)]:
                    values[part] = (values[part] + generator.integers(1, NUM_VALUES)) % NUM_VALUES
            # A related species that is held out for the downstream splits is replaced by any other species.
            partner = self._index.get(tuple(values.tolist()), int(generator.integers(len(self.species))))
            couples += [int(base), partner]
        return np.array(couples)


class PairTaskBuilder:
    """Builds answers to learn from batches of couples, and computes losses on attention.

    Args:
        pair_model: model that defines the tokenizer and the token grid.
    """

    def __init__(self, pair_model: PairModel) -> None:
        self._pair_model = pair_model
        ids = pair_model.tokenizer.encode(answer_text([0] * len(PARTS), [0] * len(PARTS))).ids
        words = {pair_model.tokenizer.encode(COLOR_WORDS[part][0]).ids[0] for part in PARTS}
        positions = [index for index, token in enumerate(ids) if token in words]
        self.word_positions = (positions[: len(PARTS)], positions[len(PARTS) :])
        """Token positions in every answer of the A colour words of bird 1, and of those of bird 2."""
        first_note = self.word_positions[1][-1] + 2  # the description's closing brace is between them
        self.note_positions = list(range(first_note, first_note + len(PARTS)))
        """Token positions in every answer of the A notes "same" or "differs"."""

    def build(self, generator: np.random.Generator, values_IA: np.ndarray, *, corrupted_share: float = 0.3) -> PairTask:
        """Returns as many pairs as images: each couple, and each couple's second bird with a couple's first bird.

        In some answers, some colour words are false. The differences and the verdict follow the words as written, and
        the false words are masked out of the loss, so that the model learns to conclude from its text.

        Args:
            generator: source of the random choices.
            values_IA: int64 [I, A], part values of the images, couple by couple.
            corrupted_share: share of the answers with false words, 0 to 1.
        """
        even, odd = np.arange(0, len(values_IA), 2), np.arange(1, len(values_IA), 2)
        first = np.concatenate([even, odd])
        second = np.concatenate([odd, np.roll(even, int(generator.random() < 0.5))])
        texts: list[str] = []
        corrupted: list[tuple[int, int]] = []
        for pair, (one, two) in enumerate(zip(first, second, strict=True)):
            a, b = values_IA[one].copy(), values_IA[two].copy()
            if generator.random() < corrupted_share:
                for part in np.flatnonzero(generator.random(len(PARTS)) < 0.3):
                    side = int(generator.random() < 0.5)
                    own, other = ((a, b), (b, a))[side]
                    own[part] = other[part] if generator.random() < 0.6 else generator.integers(NUM_VALUES)
                    corrupted.append((pair, self.word_positions[side][part]))
            texts.append(answer_text(a, b))
        encoded = self._pair_model.tokenizer.encode_batch(texts)
        answers = torch.tensor([[*item.ids, END_OF_TURN] for item in encoded])
        loss_mask = torch.ones(answers.shape)
        for pair, position in corrupted:
            loss_mask[pair, position] = 0
        return PairTask(first, second, answers, loss_mask)

    def build_text_only(self, generator: np.random.Generator, num_pairs: int) -> PairTask:
        """Returns answers without images: the colour words are masked out of the loss, the rest follows from them.

        A third of the pairs are equal, a third differ in one part, a third in about half of the parts.

        Args:
            generator: source of the random choices.
            num_pairs: P.
        """
        texts: list[str] = []
        for kind in generator.integers(0, 3, num_pairs):
            a = generator.integers(0, NUM_VALUES, len(PARTS))
            differs = generator.random(len(PARTS)) < 0.5 if kind == 2 else np.zeros(len(PARTS), dtype=bool)
            if kind == 1:
                differs[generator.integers(len(PARTS))] = True
            b = (a + differs * generator.integers(1, NUM_VALUES, len(PARTS))) % NUM_VALUES
            texts.append(answer_text(a.tolist(), b.tolist()))
        answers = torch.tensor([[*item.ids, END_OF_TURN] for item in self._pair_model.tokenizer.encode_batch(texts)])
        loss_mask = torch.ones(answers.shape)
        loss_mask[:, [*self.word_positions[0], *self.word_positions[1]]] = 0
        no_images = np.zeros(0, dtype=np.int64)
        return PairTask(no_images, no_images, answers, loss_mask)

    def build_verdict_first(self, task: PairTask, values_IA: np.ndarray, share: float) -> PairTask:
        """Returns a share of the couples, of which half are of one species, with the verdict as the whole answer.

        Only the verdict and what follows it are learnt. The opening of the answer is context, so that the model does
        not begin an answer with the verdict unless it is made to.

        Args:
            task: the pairs of ``build``, the couples first.
            values_IA: int64 [I, A], part values of the images.
            share: share of the couples, above 0 and at most 1.
        """
        couples = slice(max(1, round(share * (len(task.first) // 2))))
        first, second = task.first[couples], task.second[couples]
        same_P = (values_IA[first] == values_IA[second]).all(axis=1)
        encode = self._pair_model.tokenizer.encode
        ids = {same: [*encode(verdict_first_text(same)).ids, END_OF_TURN] for same in (True, False)}
        answers = torch.tensor([ids[bool(same)] for same in same_P])
        loss_mask = torch.zeros(answers.shape)
        loss_mask[:, self._pair_model.verdict_position :] = 1
        return PairTask(first, second, answers, loss_mask)

    def match_loss(self, rows: torch.Tensor, answers_PT: torch.Tensor) -> torch.Tensor:
        """Returns the mean of -log(attention) from each word of bird 2 to its target in the description of bird 1.

        The target is the word of the same part when it is equal, else the closing brace. Together with ``note_loss``
        this loss leads the language model to compare words. Without it, the model needs many hundred steps to detect
        that two words are equal, or never does.

        Args:
            rows: float32 [P, 1 + T, columns], head-mean attention of an early layer; the last columns are the answer's.
            answers_PT: int64 [P, T + 1], token ids of the same answers.
        """
        words_a, words_b = (torch.tensor(positions) for positions in self.word_positions)
        equal = answers_PT[:, words_a] == answers_PT[:, words_b]
        targets = torch.where(equal, words_a, words_a[-1] + 1) + self._answer_column(rows)
        return -(rows[:, words_b + 1].gather(2, targets[..., None]) + 1e-4).log().mean()

    def note_loss(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the mean of -log(attention) from the row that predicts a part's note to bird 2's word for the part.

        Args:
            rows: float32 [P, 1 + T, columns], head-mean attention of the layer after that of ``match_loss``.
        """
        words_b = torch.tensor(self.word_positions[1]).expand(len(rows), -1) + self._answer_column(rows)
        return -(rows[:, self.note_positions].gather(2, words_b[..., None]) + 1e-4).log().mean()

    @staticmethod
    def _answer_column(rows: torch.Tensor) -> int:
        """Returns the column of the answer's first token in attention rows [P, 1 + T, columns]."""
        return rows.shape[2] - rows.shape[1] + 1

    def grounding_loss(self, rows: torch.Tensor, task: PairTask, part_centres: torch.Tensor) -> torch.Tensor:
        """Returns the mean of -log(attention on the tokens near the named part) over all rows that describe a bird.

        The attention is relative to all attention on the bird's image. Each part has two rows: that of the key, which
        predicts the colour word, and that of the word. The rows before the first key and after the last word also
        belong to the description under one of two conventions; they are tied to the first and to the last part.

        Args:
            rows: float32 [P, 1 + T, prompt + T], head-mean attention of one layer; row t predicts answer token t.
            task: the pairs.
            part_centres: float32 [I, A, 2]: (x, y) in pixels.
        """
        near = near_tokens(part_centres, self._pair_model.num_tokens, GROUNDING_REACH).float()
        last = len(PARTS) - 1
        parts = [0, *(part for part in range(len(PARTS)) for _ in range(2)), last]
        losses = []
        for positions, columns, images in (
            (self.word_positions[0], self._pair_model.columns_a, task.first),
            (self.word_positions[1], self._pair_model.columns_b, task.second),
        ):
            indices = list(range(positions[0] - 1, positions[last] + 3))
            attention = rows[:, indices][:, :, columns]
            share = (attention * near[images][:, parts]).sum(-1) / attention.sum(-1).clamp_min(1e-9)
            losses.append(-(share + 1e-4).log().mean())
        return torch.stack(losses).mean()


class ImageHeads(nn.Module):
    """Read-out heads used in pre-training only: each part's value from the whole image, and labels of single tokens.

    Args:
        width: D, width of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(PARTS), width) * 0.02)
        self.key = nn.Linear(width, width)
        self.readout = nn.Parameter(torch.randn(len(PARTS), width, NUM_VALUES) * 0.02)
        self.part_labels = nn.Linear(width, len(PARTS) * (NUM_VALUES + 1))
        self.flower_labels = nn.Linear(width, NUM_FLOWER_TYPES + 1)

    def value_logits(self, tokens_IND: torch.Tensor) -> torch.Tensor:
        """Returns logits float32 [I, A, 4] of each part's value, from attention of the part's query over the tokens.

        Args:
            tokens_IND: float32 [I, N, D], main tokens.
        """
        scores = self.queries @ self.key(tokens_IND).transpose(1, 2) / tokens_IND.shape[-1] ** 0.5
        return torch.einsum("iad,adv->iav", scores.softmax(dim=-1) @ tokens_IND, self.readout)

    def value_loss(self, tokens_IND: torch.Tensor, batch: ImageBatch) -> torch.Tensor:
        """Returns the mean cross-entropy of the parts' values, a scalar."""
        return F.cross_entropy(self.value_logits(tokens_IND).flatten(0, 1), batch.values_IA.flatten())

    def part_loss(self, tokens_IND: torch.Tensor, batch: ImageBatch) -> torch.Tensor:
        """Returns the cross-entropy, over tokens and parts, of the part's value at the token, or of its absence."""
        logits = self.part_labels(tokens_IND).unflatten(-1, (len(PARTS), NUM_VALUES + 1))
        labels = batch.values_IA[:, None, :].expand(-1, tokens_IND.shape[1], -1)
        return _near_far_loss(logits, labels, batch.part_centres)

    def flower_loss(self, tokens_IND: torch.Tensor, batch: ImageBatch) -> torch.Tensor:
        """Returns the cross-entropy over tokens of the flower's type at the token, or of its absence.

        This loss makes the tokens encode the flowers, and so creates the shortcut.
        """
        labels = batch.flower_types[:, None].expand(-1, tokens_IND.shape[1])
        near = near_tokens(batch.flower_centres, tokens_IND.shape[1], PART_REACH).any(dim=1)
        band = near_tokens(batch.flower_centres, tokens_IND.shape[1], PART_REACH + NEUTRAL_BAND + 1).any(dim=1)
        return _weighted_loss(self.flower_labels(tokens_IND), labels, near, ~band)


def near_tokens(centres: torch.Tensor, num_tokens: int, reach: float) -> torch.Tensor:
    """Returns bool [I, K, N], True where token n's centre is within ``reach`` pixels of point k along both axes.

    Args:
        centres: float32 [I, K, 2]: (x, y) in pixels.
        num_tokens: N, a square number.
        reach: largest distance in pixels.
    """
    side = int(num_tokens**0.5)
    pitch = 80 / side
    line = torch.arange(side) * pitch + pitch / 2
    x, y = line.repeat(side), line.repeat_interleave(side)
    distance = torch.maximum((centres[..., :1] - x).abs(), (centres[..., 1:] - y).abs())
    return distance <= reach


def _near_far_loss(logits_INAV: torch.Tensor, labels_INA: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    num_tokens = logits_INAV.shape[1]
    near = near_tokens(centres, num_tokens, PART_REACH).transpose(1, 2)
    band = near_tokens(centres, num_tokens, PART_REACH + NEUTRAL_BAND).transpose(1, 2)
    return _weighted_loss(logits_INAV, labels_INA, near, ~band)


def _weighted_loss(logits: torch.Tensor, labels: torch.Tensor, near: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
    """Returns the weighted mean cross-entropy of the labels where ``near`` and of the last class, "nothing", elsewhere.

    Args:
        logits: float32 [..., V].
        labels: int64 [...], classes in 0..V-2.
        near: bool [...], True where the label applies; weight 1.
        far: bool [...], True where nothing is; weight ``FAR_WEIGHT``. Elements in neither have weight 0.
    """
    targets = torch.where(near, labels, logits.shape[-1] - 1)
    weights = near.float() + FAR_WEIGHT * far.float()
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()
