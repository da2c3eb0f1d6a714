"""What the stand-in is taught: batches of pre-training birds with their labels, and the losses on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from saga_dist.standin.birds import NUM_FLOWER_TYPES
from saga_dist.standin.language import COLOR_WORDS, NUM_VALUES, PARTS, answer_text
from saga_dist.standin.pair_model import END_OF_TURN, PairModel
from saga_dist.standin.world import BirdSplit

MAX_SHIFT = 5
PART_REACH = 9.0
"""A token is taught a part when the part's centre is this near to the token's, in pixels, along both axes."""
GROUNDING_REACH = 11.0
NEUTRAL_BAND = 5.0
"""Tokens between "near" and "far" are not taught anything: half a part is neither."""
FAR_WEIGHT = 0.15


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Shifted images and their labels."""

    images: np.ndarray
    values_IA: torch.Tensor
    part_centres: torch.Tensor
    """[I, A, 2] pixels."""
    flower_types: torch.Tensor
    flower_centres: torch.Tensor
    """[I, F, 2] pixels."""


@dataclass(frozen=True, slots=True)
class PairTask:
    """Pairs of a batch and the answers to learn."""

    first: np.ndarray
    """[P] index into the batch of bird 1."""
    second: np.ndarray
    answers_PT: torch.Tensor
    """Token ids, the end of turn included."""
    taught_PT: torch.Tensor
    """float, 0 where the word was corrupted: to be read, not to be learnt."""


class BirdLibrary:
    """The pre-training images, to draw batches from.

    Args:
        split: images of the pre-training species.
    """

    def __init__(self, split: BirdSplit) -> None:
        self._split = split
        self._images_per_species = len(split.labels) // (int(split.labels[-1]) + 1)
        self.species = split.attributes[:: self._images_per_species]
        self._index = {tuple(code): index for index, code in enumerate(self.species.tolist())}

    def draw(self, generator: np.random.Generator, species: np.ndarray) -> ImageBatch:
        """Returns one random image of each species index, shifted by up to 5 pixels."""
        chosen = species * self._images_per_species + generator.integers(0, self._images_per_species, len(species))
        shifts = generator.integers(-MAX_SHIFT, MAX_SHIFT + 1, (len(species), 2))
        images = self._split.images[chosen].copy()
        for image, (down, right) in zip(images, shifts, strict=True):
            image[:] = np.roll(image, (down, right), axis=(0, 1))
        moved = torch.from_numpy(shifts[:, None, ::-1].astype(np.float32))
        return ImageBatch(
            images=images,
            values_IA=torch.from_numpy(self._split.attributes[chosen]),
            part_centres=torch.from_numpy(self._split.part_centres[chosen]) + moved,
            flower_types=torch.from_numpy(self._split.flower_types[chosen]),
            flower_centres=torch.from_numpy(self._split.flower_centres[chosen]) + moved,
        )

    def related_species(self, generator: np.random.Generator, num_pairs: int) -> np.ndarray:
        """Returns [2 * num_pairs] species: couples that are equal or, as often, differ in one to three parts."""
        couples: list[int] = []
        for base in generator.integers(0, len(self.species), num_pairs):
            values = self.species[base].copy()
            if generator.random() < 0.5:
                for part in generator.permutation(len(PARTS))[: generator.integers(1, 4)]:
                    values[part] = (values[part] + generator.integers(1, NUM_VALUES)) % NUM_VALUES
            # A relative that is held out for the downstream splits is replaced by any other species.
            partner = self._index.get(tuple(values.tolist()), int(generator.integers(len(self.species))))
            couples += [int(base), partner]
        return np.array(couples)


class PairTaskBuilder:
    """Turns batches of couples into answers to learn, and grades attention.

    Args:
        reader: gives tokenizer and token grid.
    """

    def __init__(self, reader: PairModel) -> None:
        self._reader = reader
        ids = reader.tokenizer.encode(answer_text([0] * len(PARTS), [0] * len(PARTS))).ids
        words = {reader.tokenizer.encode(COLOR_WORDS[part][0]).ids[0] for part in PARTS}
        positions = [index for index, token in enumerate(ids) if token in words]
        self.word_positions = (positions[: len(PARTS)], positions[len(PARTS) :])
        """Where the colour words of bird 1 and of bird 2 stand in every answer."""
        first_note = self.word_positions[1][-1] + 2  # a closing brace lies between
        self.note_positions = list(range(first_note, first_note + len(PARTS)))
        """Where the notes "same" or "differs" stand, one for each part."""

    def lesson(
        self, generator: np.random.Generator, values_IA: np.ndarray, *, corrupted_share: float = 0.3
    ) -> PairTask:
        """Returns as many pairs as images: each couple, and each second bird with a first one.

        In ``corrupted_share`` of the answers some colour words are false. The differences and the verdict follow the
        words as written, and the false words are not taught: so conclusions come to depend on the text.
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
                    here, there = ((a, b), (b, a))[side]
                    here[part] = there[part] if generator.random() < 0.6 else generator.integers(NUM_VALUES)
                    corrupted.append((pair, self.word_positions[side][part]))
            texts.append(answer_text(a, b))
        encoded = self._reader.tokenizer.encode_batch(texts)
        answers = torch.tensor([[*item.ids, END_OF_TURN] for item in encoded])
        taught = torch.ones(answers.shape)
        for pair, position in corrupted:
            taught[pair, position] = 0
        return PairTask(first, second, answers, taught)

    def text_lesson(self, generator: np.random.Generator, num_pairs: int) -> PairTask:
        """Returns answers about birds that nobody sees: the words are given, only what follows from them is taught.

        A third of the pairs are equal, a third differ in one part, a third in about half of the parts.
        """
        texts: list[str] = []
        for kind in generator.integers(0, 3, num_pairs):
            a = generator.integers(0, NUM_VALUES, len(PARTS))
            differs = generator.random(len(PARTS)) < 0.5 if kind == 2 else np.zeros(len(PARTS), dtype=bool)
            if kind == 1:
                differs[generator.integers(len(PARTS))] = True
            b = (a + differs * generator.integers(1, NUM_VALUES, len(PARTS))) % NUM_VALUES
            texts.append(answer_text(a.tolist(), b.tolist()))
        answers = torch.tensor([[*item.ids, END_OF_TURN] for item in self._reader.tokenizer.encode_batch(texts)])
        taught = torch.ones(answers.shape)
        taught[:, [*self.word_positions[0], *self.word_positions[1]]] = 0
        nobody = np.zeros(0, dtype=np.int64)
        return PairTask(nobody, nobody, answers, taught)

    def match_loss(self, rows: torch.Tensor, answers_PT: torch.Tensor) -> torch.Tensor:
        """Returns how badly each word of bird 2 attends to the equal word of bird 1, or else to bird 1's closing brace.

        Together with ``note_loss`` this shows the language model how to compare. Left to itself it takes many hundred
        steps to find out that two words are equal, if it ever does.

        Args:
            rows: [P, 1 + T, columns] head-mean attention of an early layer; the columns end with the answer's.
            answers_PT: token ids of the same answers.
        """
        words_a, words_b = (torch.tensor(positions) for positions in self.word_positions)
        equal = answers_PT[:, words_a] == answers_PT[:, words_b]
        targets = torch.where(equal, words_a, words_a[-1] + 1) + self._answer_column(rows)
        return -(rows[:, words_b + 1].gather(2, targets[..., None]) + 1e-4).log().mean()

    def note_loss(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns how badly the row that writes a part's note attends to bird 2's word for it.

        Args:
            rows: [P, 1 + T, columns] head-mean attention of the layer after that of ``match_loss``.
        """
        words_b = torch.tensor(self.word_positions[1]).expand(len(rows), -1) + self._answer_column(rows)
        return -(rows[:, self.note_positions].gather(2, words_b[..., None]) + 1e-4).log().mean()

    @staticmethod
    def _answer_column(rows: torch.Tensor) -> int:
        return rows.shape[2] - rows.shape[1] + 1

    def grounding_loss(self, rows: torch.Tensor, lesson: PairTask, part_centres: torch.Tensor) -> torch.Tensor:
        """Returns the mean of -log(attention on the tokens near the named part) over every row that describes a bird.

        Each part has two rows: that of the key, which predicts the colour word, and that of the word. The rows before
        the first key and after the last word also count as description, by one convention or the other; they are
        tied to the first and to the last part.

        Args:
            rows: [P, 1 + T, prompt + T] head-mean attention of one layer; row t predicts answer token t.
            lesson: the pairs.
            part_centres: [I, A, 2] pixels.
        """
        near = near_tokens(part_centres, self._reader.num_tokens, GROUNDING_REACH).float()
        last = len(PARTS) - 1
        parts = [0, *(part for part in range(len(PARTS)) for _ in range(2)), last]
        losses = []
        for positions, columns, images in (
            (self.word_positions[0], self._reader.columns_a, lesson.first),
            (self.word_positions[1], self._reader.columns_b, lesson.second),
        ):
            indices = list(range(positions[0] - 1, positions[last] + 3))
            attention = rows[:, indices][:, :, columns]
            share = (attention * near[images][:, parts]).sum(-1) / attention.sum(-1).clamp_min(1e-9)
            losses.append(-(share + 1e-4).log().mean())
        return torch.stack(losses).mean()


class ImageHeads(nn.Module):
    """Read-outs used in pre-training only: each part's value from the whole image, and labels of single tokens.

    Args:
        width: D of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(PARTS), width) * 0.02)
        self.key = nn.Linear(width, width)
        self.readout = nn.Parameter(torch.randn(len(PARTS), width, NUM_VALUES) * 0.02)
        self.part_labels = nn.Linear(width, len(PARTS) * (NUM_VALUES + 1))
        self.flower_labels = nn.Linear(width, NUM_FLOWER_TYPES + 1)

    def value_logits(self, tokens_IND: torch.Tensor) -> torch.Tensor:
        """Returns [I, A, 4]: each part's query attends to the tokens."""
        scores = self.queries @ self.key(tokens_IND).transpose(1, 2) / tokens_IND.shape[-1] ** 0.5
        return torch.einsum("iad,adv->iav", scores.softmax(dim=-1) @ tokens_IND, self.readout)

    def value_loss(self, tokens_IND: torch.Tensor, batch: ImageBatch) -> torch.Tensor:
        """Returns the cross-entropy of the parts' values."""
        return F.cross_entropy(self.value_logits(tokens_IND).flatten(0, 1), batch.values_IA.flatten())

    def part_loss(self, tokens_IND: torch.Tensor, batch: ImageBatch) -> torch.Tensor:
        """Returns the cross-entropy of "which value of this part is here, if any", over tokens and parts."""
        logits = self.part_labels(tokens_IND).unflatten(-1, (len(PARTS), NUM_VALUES + 1))
        labels = batch.values_IA[:, None, :].expand(-1, tokens_IND.shape[1], -1)
        return _near_far_loss(logits, labels, batch.part_centres)

    def flower_loss(self, tokens_IND: torch.Tensor, batch: ImageBatch) -> torch.Tensor:
        """Returns the cross-entropy of "which flower is here, if any", over tokens: it plants the shortcut."""
        labels = batch.flower_types[:, None].expand(-1, tokens_IND.shape[1])
        near = near_tokens(batch.flower_centres, tokens_IND.shape[1], PART_REACH).any(dim=1)
        band = near_tokens(batch.flower_centres, tokens_IND.shape[1], PART_REACH + NEUTRAL_BAND + 1).any(dim=1)
        return _weighted_loss(self.flower_labels(tokens_IND), labels, near, ~band)


def near_tokens(centres: torch.Tensor, num_tokens: int, reach: float) -> torch.Tensor:
    """Returns bool [I, K, N]: whether token n's centre is within ``reach`` pixels of point k along both axes."""
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
    """Cross-entropy of the label where near, of "nothing" (the last class) where far, which are many and count less."""
    targets = torch.where(near, labels, logits.shape[-1] - 1)
    weights = near.float() + FAR_WEIGHT * far.float()
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()
