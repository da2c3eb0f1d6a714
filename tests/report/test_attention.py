"""The MLLM's attention, computed again, is the target that replay computes; the pooler's map is its own weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from saga_dist.models.encoder import load
from saga_dist.report.attention import Teacher, pair_tokens, pooler_maps, teacher_attention
from saga_dist.report.images import heat_rgba
from saga_dist.report.sources import open_run, read_groups
from saga_dist.report.teacher import TeacherAttention, attribute_masks, choose_described, rewarded_description
from saga_dist.report.viewer import TrainingImages
from saga_dist.runtime.build import build_family, build_prompt, build_replay_worker, build_splits, prompt_text
from saga_dist.types import ReplayTask


def test_over_the_whole_description_it_is_the_target_of_replay(run_dir: Path) -> None:
    run = open_run(run_dir)
    recorded = choose_described(read_groups(run).groups, 1)[0]
    group = recorded.group
    index = rewarded_description(group)
    assert index is not None
    family = build_family(run.config)
    encoder = load(run_dir / "model")
    images = TrainingImages(run.config, build_splits(run.config.data, seed=0).train).images(group)
    tokens = pair_tokens(encoder, *images, pair_id=group.pair.pair_id)

    # Replay takes the mean over correct completions, so it gets this one alone.
    alone = replace(group, is_correct_G=np.arange(len(group.rewards_G)) == index)
    task = ReplayTask(alone, tokens, num_tokens_total=group.num_tokens, want_attention=True)
    expected = build_replay_worker(run.config).replay(task, tokens)

    tokenizer = family.load_tokenizer()
    teacher = Teacher(
        family.load_backbone(),
        tokenizer.encode(prompt_text(run.config, family), add_special_tokens=False),
        run.config.objective.kl_layer,
    )
    masks, _ = attribute_masks(group, index, build_prompt(run.config), tokenizer)
    found = teacher_attention(teacher, tokens, group.completions.token_ids[index], masks)
    torch.testing.assert_close(found["a/whole description"], expected.attention_a_N, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["b/whole description"], expected.attention_b_N, rtol=1e-5, atol=1e-6)
    assert set(found) == {f"{side}/{name}" for side in "ab" for name in ("whole description", *ATTRIBUTES)}


ATTRIBUTES = ("bill", "crown", "breast", "wing", "tail", "legs")


def test_an_attribute_is_read_at_the_tokens_of_its_value(run_dir: Path) -> None:
    run = open_run(run_dir)
    group = choose_described(read_groups(run).groups, 1)[0].group
    index = rewarded_description(group)
    assert index is not None
    tokenizer = build_family(run.config).load_tokenizer()
    masks, words = attribute_masks(group, index, build_prompt(run.config), tokenizer)
    ids = np.array(group.completions.token_ids[index])
    image, mask_T = masks["b/crown"]
    assert image == 1
    assert "blue" in tokenizer.decode(ids[mask_T].tolist())
    assert "brown" not in tokenizer.decode(ids[mask_T].tolist())
    assert words["b/crown"] == "blue"


def test_figures_have_the_pooler_the_description_and_every_attribute(run_dir: Path) -> None:
    run = open_run(run_dir)
    pictures = TrainingImages(run.config, build_splits(run.config.data, seed=0).train)
    teacher = TeacherAttention(run.config, load(run_dir / "model"), pictures)
    figures = teacher.figures(choose_described(read_groups(run).groups, 1)[0])
    for figure in figures:
        assert [name for name, _, _ in figure.overlays] == ["pooler", "whole description", *ATTRIBUTES]
    assert len(figures) == 2


def test_pooler_map_is_its_softmax_row_by_row(run_dir: Path) -> None:
    encoder = load(run_dir / "model")
    image = np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)
    (weights_RC,) = pooler_maps(encoder, [image])
    pixels = encoder.tower.preprocess([image])
    with torch.no_grad():
        main_ND = encoder.tower.layout.main(encoder.tower(pixels))
        pooler = encoder.pooler
        scores_N = pooler.key(main_ND) @ pooler.query / main_ND.shape[1] ** 0.5
    side = weights_RC.shape[0]
    assert weights_RC.shape == (side, len(main_ND) // side)
    np.testing.assert_allclose(weights_RC.flatten(), scores_N.softmax(-1).numpy(), rtol=1e-5)


def test_heat_is_clear_without_attention_and_strongest_at_the_maximum() -> None:
    rgba = heat_rgba(np.array([[0.0, 0.5], [1.0, 0.25]]))
    assert rgba[0, 0, 3] == 0
    assert rgba[..., 3].argmax() == 2
    assert heat_rgba(np.zeros((2, 2)))[..., 3].max() == 0
