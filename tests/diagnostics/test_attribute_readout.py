"""The read-out against the pre-training's own batched reader: another tower, another prompt, no cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from saga_dist.config import BirdsSection, DataSection
from saga_dist.data.prompts import QWEN_CHAT, PromptSpec, render_prompt
from saga_dist.data.vocabularies import BIRDS
from saga_dist.diagnostics.attribute_readout import AttributeReadout, ReadoutResult, build_template
from saga_dist.errors import DataError
from saga_dist.models.families import resolve_family
from saga_dist.runtime.build import build_splits
from saga_dist.standin import checkpoint_path
from saga_dist.standin.language import COLOR_WORDS, PARTS, STANDIN_PROMPT, answer_text
from saga_dist.standin.pair_model import PairModel
from saga_dist.types import EncoderTokens

LAYER = 1


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    birds = BirdsSection(
        train_classes=4, train_images_per_class=2, val_images_per_class=2, test_images_per_class=2, probe_images=0
    )
    data = DataSection(layout="birds", image_size=80, batch_size=8, images_per_class=2, birds=birds)
    test = build_splits(data, seed=0).test
    return np.stack([test.image(index) for index in range(0, 24, 2)])


def read(folder: Path, images: np.ndarray, *, num_attention: int = 0, split_at: int | None = None) -> ReadoutResult:
    family = resolve_family(folder)
    tokenizer, tower, backbone = family.load_tokenizer(), family.load_tower(), family.load_backbone()
    placeholder = family.image_placeholder
    prompt = render_prompt(STANDIN_PROMPT, image_a=placeholder, image_b=placeholder, chat=QWEN_CHAT)
    reader = AttributeReadout(
        backbone,
        tokenizer.encode(prompt, add_special_tokens=False),
        build_template(tokenizer, STANDIN_PROMPT, COLOR_WORDS),
        layer=LAYER,
    )
    tokens = []
    for number, image in enumerate(images):
        pixels = tower.preprocess([image, image])
        with torch.no_grad():
            values_NW = tower(pixels)
        tokens.append(EncoderTokens(f"p{number}", values_NW, pixels.lengths, pixels.grids, 1, 0))
    if split_at is None:
        return reader.read(tokens, num_attention=num_attention)
    return ReadoutResult.joined(
        [reader.read(tokens[:split_at], num_attention=num_attention), reader.read(tokens[split_at:], num_attention=0)]
    )


@torch.no_grad()
def reference(folder: Path, images: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Probabilities by attribute, attention by attribute and over the description, of one image after the other."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    reader = PairModel(model, image_size=80)
    template = reader.tokenizer.encode(answer_text([0] * 6, [0] * 6)).ids
    words = {part: [reader.tokenizer.encode(word).ids[0] for word in COLOR_WORDS[part]] for part in PARTS}
    places = [template.index(words[part][0]) for part in PARTS]
    probabilities: list[list[np.ndarray]] = [[] for _ in PARTS]
    named, whole = [], []
    for image in images:
        tokens = reader.encode(image[None])
        ids = list(template[: places[-1] + 2])  # up to the brace that closes the first description
        for part, place in zip(PARTS, places, strict=True):
            hidden = reader.hidden(tokens, tokens, torch.tensor([ids[:place]]))[0, -1]
            ids[place] = words[part][int(model.lm_head(hidden)[words[part]].argmax())]
        with reader.attention_at(LAYER) as rows:
            hidden = reader.hidden(tokens, tokens, torch.tensor([ids]))[0]
        on_image = rows[0][0][:, reader.columns_a]
        on_image = on_image / on_image.sum(-1, keepdim=True)
        for index, (part, place) in enumerate(zip(PARTS, places, strict=True)):
            probabilities[index].append(model.lm_head(hidden[place])[words[part]].double().softmax(-1).numpy())
        named.append([((on_image[place] + on_image[place + 1]) / 2).numpy() for place in places])
        whole.append(on_image[1:].mean(0).numpy())  # every token but the prompt's last is part of the description
    return [np.stack(rows) for rows in probabilities], np.array(named), np.array(whole)


@pytest.mark.parametrize("which", ["pre-trained", "random"])
def test_against_another_reader(which: str, tiny_checkpoint: Path, images: np.ndarray) -> None:
    folder = checkpoint_path() if which == "pre-trained" else tiny_checkpoint
    found = read(folder, images, num_attention=5, split_at=7)
    probabilities, named, whole = reference(folder, images)
    for ours, theirs in zip(found.probabilities, probabilities, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert found.word_attention_JAN is not None and found.description_attention_JN is not None
    np.testing.assert_allclose(found.word_attention_JAN, named[:5], atol=2e-4)
    np.testing.assert_allclose(found.description_attention_JN, whole[:5], atol=2e-4)
    # The last token of the description is the closing quote and brace, one token of this tokenizer.
    np.testing.assert_array_equal(found.choices(), np.stack([rows.argmax(1) for rows in probabilities], axis=1))


def test_hellinger_vectors_by_hand() -> None:
    readings = ReadoutResult((np.array([[0.64, 0.36], [0.0, 1.0]]), np.array([[0.25, 0.75], [1.0, 0.0]])), None, None)
    vectors = readings.hellinger()
    np.testing.assert_allclose(vectors, [[0.8, 0.6, 0.5, 0.75**0.5], [0.0, 1.0, 1.0, 0.0]])
    cosine = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    assert cosine == pytest.approx((0.6 + 0.5) / 2)  # mean over attributes of sum sqrt(p q)


def test_words_of_several_tokens_are_refused() -> None:
    tokenizer = resolve_family(checkpoint_path()).load_tokenizer()
    with pytest.raises(DataError, match="'ultramarine' is not one token"):
        build_template(tokenizer, PromptSpec(BIRDS), {"bill": ("yellow", "ultramarine")})
