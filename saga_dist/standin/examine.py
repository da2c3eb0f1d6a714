"""Examines a stand-in: are its answers valid and right, do its verdicts follow its words, where does it look."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from saga_dist.config import BirdsSection
from saga_dist.standin.birds import IMAGE_SIZE, PLAIN_STYLE, SHIFTED_STYLE, Style
from saga_dist.standin.language import COLOR_WORDS, PARTS, STANDIN_PROMPT
from saga_dist.standin.pair_model import PairModel, Tokens
from saga_dist.standin.pretraining_tasks import PairTaskBuilder
from saga_dist.standin.world import NUISANCE_DOWNSTREAM, NUISANCE_PRETRAIN, BirdSplit, split
from saga_dist.utils.rng import counter_generator, counter_seed

BIRD_SHARE = 0.1
"""A token counts as bird when at least this share of its area is."""
_CONFIG = BirdsSection(val_images_per_class=8, test_images_per_class=32)


@torch.no_grad()
def examine(reader: PairModel, *, num_pairs: int = 128, group_size: int = 8) -> dict[str, float]:
    """Returns figures by name, on classes never trained on.

    Names start with ``clean/`` (the look of pre-training) or ``shifted/`` (the look of the downstream splits).
    ``zero_shot_recall_at_1`` is of mean-pooled tokens on the test classes, in percent.
    """
    figures: dict[str, float] = {}
    looks: tuple[tuple[str, Style, tuple[float, float]], ...] = (
        ("clean", PLAIN_STYLE, NUISANCE_PRETRAIN),
        ("shifted", SHIFTED_STYLE, NUISANCE_DOWNSTREAM),
    )
    for look, style, nuisance in looks:
        birds = split("val", _CONFIG, style=style, nuisance=nuisance)
        for name, value in examine_pairs(reader, birds, num_pairs=num_pairs, group_size=group_size).items():
            figures[f"{look}/{name}"] = round(value, 3)
    test = split("test", _CONFIG)
    tokens_IND = encode_all(reader, test.images).main_IND
    figures["zero_shot_recall_at_1"] = round(100 * recall_at_1(tokens_IND.mean(1), test.labels), 1)
    bird = bird_tokens(test.bird_masks, reader.num_tokens)
    pooled = (tokens_IND * bird[..., None]).sum(1) / bird.sum(1, keepdim=True)
    figures["bird_pooled_recall_at_1"] = round(100 * recall_at_1(pooled, test.labels), 1)
    return figures


@torch.no_grad()
def examine_pairs(
    reader: PairModel, birds: BirdSplit, *, num_pairs: int = 128, group_size: int = 8
) -> dict[str, float]:
    """Returns figures on pairs of a split, every other pair of one class."""
    first, second = _pairs(birds.labels, num_pairs)
    tokens = encode_all(reader, birds.images)
    a, b = tokens[first], tokens[second]
    truth = birds.labels[first] == birds.labels[second]

    with reader.attention_at(1) as rows:
        greedy = [texts[0] for texts in reader.answer(a, b)]
        rows.clear()
        ids = [reader.tokenizer.encode(text).ids for text in greedy]
        longest = max(map(len, ids))
        reader.hidden(a, b, torch.tensor([[*line, *[0] * (longest - len(line))] for line in ids]))
    verdicts = np.array([verdict_of(text) for text in greedy], dtype=object)
    right = verdicts == truth
    follows: list[bool] = []
    words_right: list[float] = []
    for verdict, text, one, two in zip(verdicts, greedy, first, second, strict=True):
        words_a, words_b = described_values(text)
        if words_a is not None and words_b is not None:
            follows.append(verdict == (words_a == words_b))
            truly = np.concatenate([birds.attributes[one], birds.attributes[two]])
            words_right.append(float((truly == [*words_a, *words_b]).mean()))

    generator = torch.Generator().manual_seed(counter_seed("standin examine"))
    groups = reader.answer(a, b, num_answers=group_size, temperature=0.7, top_p=0.95, generator=generator)
    sampled = np.array([[verdict_of(text) for text in texts] for texts in groups], dtype=object)
    rewards = sampled == truth[:, None]
    return {
        "valid_greedy": float(np.mean([verdict is not None for verdict in verdicts])),
        "valid_sampled": float(np.mean(sampled != None)),  # noqa: E711 - elementwise
        "verdict_accuracy": float(right.mean()),
        "same_accuracy": float(right[truth].mean()),
        "different_accuracy": float(right[~truth].mean()),
        # Over the answers that describe both birds; 0 when none does.
        "words_right": float(np.mean(words_right or [0.0])),
        "verdict_follows_words": float(np.mean(follows or [False])),
        "sampled_reward": float(rewards.mean()),
        "contributing_share": float((rewards.any(1) & ~rewards.all(1)).mean()),
        "attention_on_bird": attention_on_bird(reader, rows[0], birds.bird_masks, first, second),
    }


def attention_on_bird(
    reader: PairModel, rows: torch.Tensor, masks: np.ndarray, first: np.ndarray, second: np.ndarray
) -> float:
    """Returns the share of attention, of that on the image, that lies on the bird in the rows that describe it."""
    teacher = PairTaskBuilder(reader)
    shares = []
    for positions, columns, images in (
        (teacher.word_positions[0], reader.columns_a, first),
        (teacher.word_positions[1], reader.columns_b, second),
    ):
        attention = rows[:, positions[0] - 1 : positions[-1] + 3, columns]
        bird = bird_tokens(masks[images], reader.num_tokens)
        shares.append(((attention * bird[:, None]).sum(-1) / attention.sum(-1)).mean())
    return float(torch.stack(shares).mean())


def bird_tokens(masks: np.ndarray, num_tokens: int) -> torch.Tensor:
    """Returns float [I, N]: 1 for tokens that the bird covers noticeably."""
    side = int(num_tokens**0.5)
    cell = IMAGE_SIZE // side
    cover = masks.reshape(-1, side, cell, side, cell).mean(axis=(2, 4)).reshape(len(masks), -1)
    return torch.from_numpy((cover > BIRD_SHARE).astype(np.float32))


def encode_all(reader: PairModel, images: np.ndarray, *, batch_size: int = 200) -> Tokens:
    """Returns the tokens of many images, without gradient."""
    with torch.no_grad():
        parts = [reader.encode(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    levels = zip(*(part.deepstack for part in parts), strict=True)
    return Tokens(torch.cat([part.main_IND for part in parts]), tuple(torch.cat(level) for level in levels))


def recall_at_1(embeddings_IE: torch.Tensor, labels: np.ndarray) -> float:
    """Returns the share of images whose nearest other image, by cosine, has their label."""
    unit = F.normalize(embeddings_IE, dim=-1)
    similarity = (unit @ unit.T).fill_diagonal_(-2.0)
    return float((labels[similarity.argmax(1).numpy()] == labels).mean())


def verdict_of(text: str) -> bool | None:
    """Returns the verdict in an answer, None where the answer is not the JSON asked for."""
    answer = _parsed(text)
    return {"yes": True, "no": False}.get(str(answer.get(STANDIN_PROMPT.verdict_key)))


def described_values(text: str) -> tuple[list[int] | None, list[int] | None]:
    """Returns the part values that an answer gives bird 1 and bird 2, None where it gives none."""
    answer = _parsed(text)
    return _values(answer.get(STANDIN_PROMPT.key_a)), _values(answer.get(STANDIN_PROMPT.key_b))


def _parsed(text: str) -> dict[str, object]:
    try:
        answer = json.loads(text)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) and set(STANDIN_PROMPT.keys) <= set(answer) else {}


def _values(description: object) -> list[int] | None:
    if not isinstance(description, dict) or any(description.get(part) not in COLOR_WORDS[part] for part in PARTS):
        return None
    return [COLOR_WORDS[part].index(description[part]) for part in PARTS]


def _pairs(labels: np.ndarray, num_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    generator = counter_generator("standin examine pairs")
    first: list[int] = []
    second: list[int] = []
    for index in range(num_pairs):
        one = int(generator.integers(len(labels)))
        pool: Sequence[int] = (
            np.flatnonzero((labels == labels[one]) & (np.arange(len(labels)) != one))
            if index % 2 == 0
            else np.flatnonzero(labels != labels[one])
        ).tolist()
        first.append(one)
        second.append(int(generator.choice(pool)))
    return np.array(first), np.array(second)
