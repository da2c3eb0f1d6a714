"""The measure of forced verdicts is that of training: the same prompt, the same tokens, the same probability."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from saga_dist.config import BirdsSection
from saga_dist.data.prompts import render_prompt
from saga_dist.models.families import resolve_family
from saga_dist.standin import forced
from saga_dist.standin.examine import draw_pairs, encode_all
from saga_dist.standin.language import STANDIN_PROMPT
from saga_dist.standin.pair_model import PairModel
from saga_dist.standin.world import BirdSplit, split
from saga_dist.types import EncoderTokens, ImagePair, VerdictTask
from saga_dist.workers.replay import ReplayWorker

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def reader(tiny_checkpoint: Path) -> PairModel:
    from transformers import Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    return PairModel(model, image_size=80)


@pytest.fixture(scope="module")
def birds() -> BirdSplit:
    return split("val", BirdsSection(val_images_per_class=2))


def test_it_is_the_probability_that_training_raises(reader: PairModel, birds: BirdSplit, tiny_checkpoint: Path) -> None:
    family = resolve_family(tiny_checkpoint)
    image, tower = family.image_placeholder, family.load_tower()
    worker = ReplayWorker(
        family.load_backbone(),
        family=family,
        prompt_text=render_prompt(STANDIN_PROMPT, image_a=image, image_b=image, chat=family.chat_format),
        kl_layer=1,
        verdict_key=STANDIN_PROMPT.verdict_key,
    )
    pixels = tower.preprocess([birds.images[0], birds.images[1]])
    with torch.no_grad():
        values_NW = tower(pixels)
        tokens = encode_all(reader, birds.images[:2])
        p_same = float(reader.forced_probability(tokens[[0]], tokens[[1]]))
    record = EncoderTokens("p", values_NW, pixels.lengths, pixels.grids, family.layout.num_deepstack, 0)
    for same, p_right in ((True, p_same), (False, 1 - p_same)):
        task = VerdictTask(ImagePair("p", 0, 1, 0, 0 if same else 1), record, num_pairs_total=1)
        assert math.exp(-worker.replay(task, record).loss) == pytest.approx(p_right, rel=1e-4)
    assert abs(p_same - 0.5) > 1e-3


def test_figures_are_means_over_the_pairs_of_a_kind(
    reader: PairModel, birds: BirdSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = draw_pairs(birds.labels, 8)
    assert (first != second).all()
    assert (birds.labels[first] == birds.labels[second]).tolist() == [True, False] * 4
    p_same_P = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.4, 0.7, 0.7, 0.6])
    monkeypatch.setattr(PairModel, "forced_probability", lambda *_: p_same_P)
    assert forced.examine_forced_pairs(reader, birds, num_pairs=8) == {
        "forced_probability_same": pytest.approx(0.7),
        "forced_right_share_same": 0.75,
        "forced_probability_different": pytest.approx(0.6),
        "forced_right_share_different": 0.5,
    }


@pytest.mark.parametrize(("different", "code"), [(0.71, 0), (0.7, 1)])
def test_the_command_says_whether_a_stand_in_is_of_use(
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    different: float,
    code: int,
) -> None:
    figures = {"clean/forced_probability_same": 0.9, "clean/forced_probability_different": different}
    monkeypatch.setattr(forced, "examine_forced", lambda *_, **__: figures)
    assert forced.main([str(tiny_checkpoint)]) == code
    assert f"{different:.3f}, needed: above 0.7" in capsys.readouterr().out
