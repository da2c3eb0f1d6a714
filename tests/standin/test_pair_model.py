"""The batched reader gives what Hugging Face's own forward pass gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from saga_dist.standin.checkpoint import Architecture, build_model, save_checkpoint
from saga_dist.standin.language import answer_text
from saga_dist.standin.pair_model import PairModel

IMAGES = np.random.default_rng(0).integers(0, 255, (2, 80, 80, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def reader() -> PairModel:
    architecture = replace(Architecture(), tower_depth=2, deepstack=(0, 1))
    return PairModel(build_model(architecture, seed=1), image_size=80)


@torch.no_grad()
def test_tower_hidden_states_and_attention_equal_hugging_faces(
    reader: PairModel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

    architecture = replace(Architecture(), tower_depth=2, deepstack=(0, 1))
    folder = save_checkpoint(reader.model, architecture, tmp_path_factory.mktemp("two_levels"))
    reference = Qwen3VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    text = answer_text([0] * 6, [1] * 6)
    prompt = reader.tokenizer.decode(reader.prompt_ids.tolist(), skip_special_tokens=False)
    prompt = prompt.replace("<|image_pad|>" * 25, "<|image_pad|>")
    inputs = AutoProcessor.from_pretrained(folder)(
        text=[prompt + text], images=[Image.fromarray(image) for image in IMAGES], return_tensors="pt"
    )
    vision = reference.model.visual(inputs["pixel_values"], inputs["image_grid_thw"])
    whole = reference(**inputs, output_attentions=True)

    tokens = reader.encode(IMAGES)
    torch.testing.assert_close(tokens.main_IND.flatten(0, 1), vision.pooler_output, atol=1e-5, rtol=1e-4)
    for mine, theirs in zip(tokens.deepstack, vision.deepstack_features, strict=True):
        torch.testing.assert_close(mine.flatten(0, 1), theirs, atol=1e-5, rtol=1e-4)
    ids = torch.tensor([reader.tokenizer.encode(text).ids])
    with reader.attention_at(1) as rows:
        hidden = reader.hidden(tokens[:1], tokens[1:], ids)
    first = reader.prompt_length - 1
    torch.testing.assert_close(reader.model.lm_head(hidden), whole.logits[:, first:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows[0], whole.attentions[1].mean(1)[:, first:], atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_greedy_answer_is_the_argmax_chain(reader: PairModel) -> None:
    tokens = reader.encode(IMAGES)
    ids: list[int] = []
    for _ in range(6):
        hidden = reader.hidden(tokens[:1], tokens[1:], torch.tensor([ids], dtype=torch.long).reshape(1, -1))
        ids.append(int(reader.model.lm_head(hidden)[0, -1].argmax()))
    ((text,),) = reader.answer(tokens[:1], tokens[1:], max_tokens=6)
    assert text == reader.tokenizer.decode(ids)


def test_sampling_repeats_with_its_generator_and_keeps_pairs_apart(reader: PairModel) -> None:
    with torch.no_grad():
        tokens = reader.encode(IMAGES)
    drawn = [
        reader.answer(
            tokens[[0, 1]],
            tokens[[1, 0]],
            num_answers=3,
            temperature=0.7,
            top_p=0.95,
            generator=torch.Generator().manual_seed(seed),
            max_tokens=5,
        )
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(texts) for texts in drawn[0]] == [3, 3]
