"""The viewer's data: the right groups, the images the encoder saw, tokens that add up to the text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import CheckpointError
from saga_dist.report.attention import pair_tokens
from saga_dist.report.sources import RecordedGroup, evenly, open_run, read_groups
from saga_dist.report.text import MAX_COMPLETION
from saga_dist.report.viewer import TrainingImages, group_data, select_groups, token_pieces
from saga_dist.runtime.build import build_family, build_learner, build_splits
from saga_dist.types import Completions, ImagePair, Sampling, ScoredGroup


@pytest.mark.parametrize(
    ("total", "limit", "expected"),
    [(5, 10, [0, 1, 2, 3, 4]), (10, 4, [0, 3, 6, 9]), (7, 1, [0]), (7, 0, []), (0, 3, []), (3, 2, [0, 2])],
)
def test_evenly_keeps_first_and_last(total: int, limit: int, expected: list[int]) -> None:
    assert evenly(total, limit) == expected


def test_groups_come_by_step_and_a_selection_spans_the_run(run_dir: Path) -> None:
    recorded = read_groups(open_run(run_dir))
    assert [one.step for one in recorded.groups] == [1] * 4 + [2] * 4 + [3] * 4
    assert [one.step for one in select_groups(recorded.groups, 3)] == [1, 2, 3]
    assert (recorded.num_read, recorded.num_recordings) == (3, 3)


def test_of_many_recordings_a_bounded_number_is_read_and_counted(run_dir: Path) -> None:
    recorded = read_groups(open_run(run_dir), limit=2)
    assert sorted({one.step for one in recorded.groups}) == [1, 3]
    assert (recorded.num_read, recorded.num_recordings) == (2, 3)


def test_a_step_that_was_not_recorded_is_named(run_dir: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no recording of step 9; .*expected a recorded step \(1 to 3\)|step 9"):
        read_groups(open_run(run_dir), step=9)


def test_images_are_what_the_encoder_saw_augmentation_included(run_dir: Path) -> None:
    run = open_run(run_dir)
    learner = build_learner(run.config)
    batch = ClassBalancedSampler(learner.labels("train"), 6, 2, seed=0).micro_batch(0, 0, 4)
    handles = learner.encode(batch).handles
    group = _group(["x"], pair=batch.pairs[0]).group
    train = build_splits(run.config.data, seed=0).train
    images = TrainingImages(run.config, train).images(group)
    assert not np.array_equal(images[0], train.image(group.pair.image_a))
    tokens = pair_tokens(learner.encoder, images[0], images[1], pair_id=group.pair.pair_id)
    torch.testing.assert_close(tokens.values_NW, handles[0].values_NW, rtol=1e-4, atol=1e-5)


def test_pieces_add_up_to_the_text(run_dir: Path) -> None:
    run = open_run(run_dir)
    tokenizer = build_family(run.config).load_tokenizer()
    for recorded in read_groups(run, step=1).groups:
        for ids, text in zip(recorded.group.completions.token_ids, recorded.group.completions.texts, strict=True):
            pieces = token_pieces(tokenizer, ids, text)
            assert pieces is not None
            assert "".join(pieces) == text and len(pieces) == len(ids)
    assert token_pieces(tokenizer, [1, 2, 3], "some other text") is None


class Letters:
    """A tokenizer with a token per character."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, token_ids))


def _group(texts: list[str], pair: ImagePair | None = None) -> RecordedGroup:
    count = len(texts)
    pair = pair or ImagePair("s000008.m0.p00", 0, 1, 0, 1)
    completions = Completions(
        pair_id=pair.pair_id,
        token_ids=tuple(tuple(map(ord, text)) for text in texts),
        texts=tuple(texts),
        log_probs=tuple(np.full(len(text), -0.25, np.float32) for text in texts),
        finish_reasons=("stop",) * count,
        sampling=Sampling(count, 0.7, 0.95, 100, 0),
        encoder_version=5,
    )
    masks = tuple(np.arange(len(text)) == 0 for text in texts)
    return RecordedGroup(
        8,
        ScoredGroup(
            pair, completions, (True, *(None,) * (count - 1)), np.zeros(count, np.float32), np.zeros(count, bool),
            np.zeros(count, np.float32), masks, tuple(~mask for mask in masks),
        ),
    )  # fmt: skip


def test_a_group_as_data() -> None:
    data = group_data(_group(["ab", "\x1b<"]), Letters(), None)
    assert data["staleness"] == 2
    assert data["classes"] == ["class 0", "class 1"]
    first, second = data["completions"]
    assert first["pieces"] == ["a", "b"] and first["describes"] == [1, 2]
    assert first["right"] is False and first["verdict"] is True
    assert second["verdict"] is None
    assert second["pieces"] == ["\\x1b", "<"]
    assert second["log_probs"] == [-0.25, -0.25]


def test_mismatch_is_replay_minus_engine_token_by_token(run_dir: Path) -> None:
    recorded = _group(["abc", "d"])
    replayed = (np.array([-0.5, -0.25, -0.0], np.float32), np.array([np.nan], np.float32))
    group = replace(recorded.group, replayed=replayed)
    first, second = group_data(RecordedGroup(7, group), Letters(), None)["completions"]
    assert first["gaps"] == [-0.25, 0.0, 0.25] and first["mean_gap"] == pytest.approx(0.5 / 3, abs=1e-5)
    assert second["gaps"] == [0.0]  # JSON has no word for what is no number
    (untrained, _) = group_data(recorded, Letters(), None)["completions"]
    assert untrained["gaps"] is None and "mean_gap" not in untrained


def test_a_huge_completion_is_cut_with_its_tokens() -> None:
    (one,) = group_data(_group(["x" * (MAX_COMPLETION + 500)]), Letters(), None)["completions"]
    assert len(one["pieces"]) == len(one["log_probs"]) == len(one["describes"]) == MAX_COMPLETION
    assert one["left_out"] == 500
