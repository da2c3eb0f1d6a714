"""Evaluates a stand-in: validity and accuracy of its answers, consistency of its verdicts, place of its attention."""

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
"""A token counts as bird when the bird covers more than this share of its area."""
DOMAINS: dict[str, tuple[Style, tuple[float, float]]] = {
    "clean": (PLAIN_STYLE, NUISANCE_PRETRAIN),
    "shifted": (SHIFTED_STYLE, NUISANCE_DOWNSTREAM),
}
"""Style and range of nuisance strengths of the images: those of pre-training, and those of the downstream splits."""
_CONFIG = BirdsSection(val_images_per_class=8, test_images_per_class=32)


def held_out_birds(domain: str) -> BirdSplit:
    """Returns images of the validation species, which no training used.

    Args:
        domain: key of ``DOMAINS``.
    """
    style, nuisance = DOMAINS[domain]
    return split("val", _CONFIG, style=style, nuisance=nuisance)


@torch.no_grad()
def examine(pair_model: PairModel, *, num_pairs: int = 128, group_size: int = 8) -> dict[str, float]:
    """Returns metrics by name, measured on classes that no training used.

    Args:
        pair_model: the stand-in with its prompt.
        num_pairs: pairs of validation images per domain.
        group_size: sampled answers per pair.

    Returns:
        The metrics of ``examine_pairs`` under ``clean/`` (validation images in the style of pre-training) and
        ``shifted/`` (in the style of the downstream splits), rounded to three digits; and Recall@1 in percent on the
        test classes of mean-pooled tokens (``zero_shot_recall_at_1``) and of the mean over the tokens of the bird
        (``bird_pooled_recall_at_1``).
    """
    figures: dict[str, float] = {}
    for domain in DOMAINS:
        birds = held_out_birds(domain)
        for name, value in examine_pairs(pair_model, birds, num_pairs=num_pairs, group_size=group_size).items():
            figures[f"{domain}/{name}"] = round(value, 3)
    test = split("test", _CONFIG)
    tokens_IND = encode_all(pair_model, test.images).main_IND
    figures["zero_shot_recall_at_1"] = round(100 * recall_at_1(tokens_IND.mean(1), test.labels), 1)
    bird = bird_tokens(test.bird_masks, pair_model.num_tokens)
    pooled = (tokens_IND * bird[..., None]).sum(1) / bird.sum(1, keepdim=True)
    figures["bird_pooled_recall_at_1"] = round(100 * recall_at_1(pooled, test.labels), 1)
    return figures


@torch.no_grad()
def examine_pairs(
    pair_model: PairModel, birds: BirdSplit, *, num_pairs: int = 128, group_size: int = 8
) -> dict[str, float]:
    """Returns metrics on pairs of a split, of which every second pair has two images of one class.

    Args:
        pair_model: the stand-in with its prompt.
        birds: images of the split.
        num_pairs: number of pairs.
        group_size: sampled answers per pair, at temperature 0.7 and top_p 0.95.

    Returns:
        Shares in 0..1 by name: validity of greedy and sampled answers; accuracy of greedy verdicts, overall and for
        same and different pairs; share of right colour words and of verdicts that agree with the answer's own words;
        mean reward and share of groups with varying rewards among sampled answers; attention on the bird.
    """
    first, second = draw_pairs(birds.labels, num_pairs)
    tokens = encode_all(pair_model, birds.images)
    a, b = tokens[first], tokens[second]
    truth = birds.labels[first] == birds.labels[second]

    with pair_model.attention_at(1) as rows:
        greedy = [texts[0] for texts in pair_model.answer(a, b)]
        rows.clear()
        ids = [pair_model.tokenizer.encode(text).ids for text in greedy]
        longest = max(map(len, ids))
        pair_model.hidden(a, b, torch.tensor([[*line, *[0] * (longest - len(line))] for line in ids]))
    verdicts = np.array([verdict_of(text) for text in greedy], dtype=object)
    right = verdicts == truth
    follows: list[bool] = []
    words_right: list[float] = []
    for verdict, text, one, two in zip(verdicts, greedy, first, second, strict=True):
        words_a, words_b = described_values(text)
        if words_a is not None and words_b is not None:
            follows.append(verdict == (words_a == words_b))
            true_values = np.concatenate([birds.attributes[one], birds.attributes[two]])
            words_right.append(float((true_values == [*words_a, *words_b]).mean()))

    generator = torch.Generator().manual_seed(counter_seed("standin examine"))
    groups = pair_model.answer(a, b, num_answers=group_size, temperature=0.7, top_p=0.95, generator=generator)
    sampled = np.array([[verdict_of(text) for text in texts] for texts in groups], dtype=object)
    rewards = sampled == truth[:, None]
    return {
        "valid_greedy": float(np.mean([verdict is not None for verdict in verdicts])),
        "valid_sampled": float(np.mean(sampled != None)),  # noqa: E711 - elementwise
        "verdict_accuracy": float(right.mean()),
        "same_accuracy": float(right[truth].mean()),
        "different_accuracy": float(right[~truth].mean()),
        # The next two are means over the answers that describe both birds; 0 when there is no such answer.
        "words_right": float(np.mean(words_right or [0.0])),
        "verdict_follows_words": float(np.mean(follows or [False])),
        "sampled_reward": float(rewards.mean()),
        "contributing_share": float((rewards.any(1) & ~rewards.all(1)).mean()),
        "attention_on_bird": attention_on_bird(pair_model, rows[0], birds.bird_masks, first, second),
    }


def attention_on_bird(
    pair_model: PairModel, rows: torch.Tensor, masks: np.ndarray, first: np.ndarray, second: np.ndarray
) -> float:
    """Returns the share of the attention on an image that is on its bird, over the rows that describe the bird.

    Args:
        pair_model: model whose prompt gives the columns of the two images.
        rows: float [P, 1 + T, prompt + T], head-mean attention of one layer.
        masks: bool [I, 80, 80], True for pixels of the bird.
        first: integer [P], image index of bird 1 of each pair.
        second: integer [P], image index of bird 2 of each pair.
    """
    builder = PairTaskBuilder(pair_model)
    shares = []
    for positions, columns, images in (
        (builder.word_positions[0], pair_model.columns_a, first),
        (builder.word_positions[1], pair_model.columns_b, second),
    ):
        attention = rows[:, positions[0] - 1 : positions[-1] + 3, columns]
        bird = bird_tokens(masks[images], pair_model.num_tokens)
        shares.append(((attention * bird[:, None]).sum(-1) / attention.sum(-1)).mean())
    return float(torch.stack(shares).mean())


def bird_tokens(masks: np.ndarray, num_tokens: int) -> torch.Tensor:
    """Returns float32 [I, N]: 1 for tokens of which the bird covers more than ``BIRD_SHARE``, else 0.

    Args:
        masks: bool [I, 80, 80], True for pixels of the bird.
        num_tokens: N, a square number.
    """
    side = int(num_tokens**0.5)
    cell = IMAGE_SIZE // side
    cover = masks.reshape(-1, side, cell, side, cell).mean(axis=(2, 4)).reshape(len(masks), -1)
    return torch.from_numpy((cover > BIRD_SHARE).astype(np.float32))


def encode_all(pair_model: PairModel, images: np.ndarray, *, batch_size: int = 200) -> Tokens:
    """Returns the tokens of images, uint8 [I, 80, 80, 3], encoded in batches without gradient."""
    with torch.no_grad():
        parts = [pair_model.encode(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    levels = zip(*(part.deepstack for part in parts), strict=True)
    return Tokens(torch.cat([part.main_IND for part in parts]), tuple(torch.cat(level) for level in levels))


def recall_at_1(embeddings_IE: torch.Tensor, labels: np.ndarray) -> float:
    """Returns the share of images whose most similar other image by cosine has the same label.

    Args:
        embeddings_IE: float [I, E], not necessarily normalised.
        labels: integer [I].
    """
    unit = F.normalize(embeddings_IE, dim=-1)
    similarity = (unit @ unit.T).fill_diagonal_(-2.0)
    return float((labels[similarity.argmax(1).numpy()] == labels).mean())


def verdict_of(text: str) -> bool | None:
    """Returns the verdict in an answer, True for "same"; None when the answer is not the required JSON."""
    answer = _parsed(text)
    return {"yes": True, "no": False}.get(str(answer.get(STANDIN_PROMPT.verdict_key)))


def described_values(text: str) -> tuple[list[int] | None, list[int] | None]:
    """Returns the part values [A] in an answer's descriptions of bird 1 and bird 2; None for a missing description."""
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


def draw_pairs(labels: np.ndarray, num_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns int64 [P] image indices of the first and of the second birds; every second pair is of one class.

    Args:
        labels: integer [I], class of each image.
        num_pairs: P, number of pairs.
    """
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
