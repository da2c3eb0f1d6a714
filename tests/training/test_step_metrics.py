"""Metrics of a step, counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_dist.config import load_config
from saga_dist.training.step_metrics import verdict_form_metrics, verdict_key
from saga_dist.types import Completions, ImagePair, Sampling, ScoredGroup
from saga_dist.wire import read_recording, write_recording

ROOT = Path(__file__).resolve().parents[2]
STRICT, FENCED, LOOSE, NONE = (
    '{"same_species": "yes"}',
    '```json\n{"same_species": "no"}\n```',
    "Sure: {'same_species': Yes.}",
    '{"same_species": "yes|no"}',
)


def make_group(*texts: str) -> ScoredGroup:
    """A group whose recorded verdicts are all None, as an older parser may have read them."""
    num = len(texts)
    return ScoredGroup(
        pair=ImagePair("s0.m0.p00", 0, 1, 5, 5),
        completions=Completions(
            pair_id="s0.m0.p00",
            token_ids=((1,),) * num,
            texts=texts,
            log_probs=(np.zeros(1, np.float32),) * num,
            finish_reasons=("stop",) * num,
            sampling=Sampling(num, 0.7, 0.95, 16, 0),
            encoder_version=0,
        ),
        verdicts=(None,) * num,
        rewards_G=np.zeros(num, np.float32),
        is_correct_G=np.zeros(num, bool),
        advantages_G=np.zeros(num, np.float32),
        describes_a=(np.zeros(1, bool),) * num,
        describes_b=(np.zeros(1, bool),) * num,
    )


def test_forms_of_verdicts_by_hand() -> None:
    groups = [make_group(STRICT, STRICT, FENCED, LOOSE), make_group(NONE, LOOSE, LOOSE, "")]
    assert verdict_form_metrics(groups, "same_species") == {
        "rollout/verdict_form_strict_share": 3 / 8,
        "rollout/verdict_form_repaired_share": 3 / 8,
        "rollout/verdict_form_none_share": 2 / 8,
    }
    assert verdict_form_metrics([], "same_species") == {}


def test_a_recording_keeps_the_verdicts_and_rewards_it_was_made_with(tmp_path: Path) -> None:
    write_recording(tmp_path / "step.arrow", [make_group(LOOSE, STRICT)])
    (group,) = read_recording(tmp_path / "step.arrow")
    assert group.verdicts == (None, None)
    assert not group.is_correct_G.any()
    assert group.rewards_G.tolist() == [0, 0]


@pytest.mark.parametrize(("name", "key"), [("cub", "same_species"), ("aircraft", "same_variant")])
def test_the_key_is_that_of_the_runs_prompt(name: str, key: str) -> None:
    assert verdict_key(load_config(ROOT / "configs" / f"{name}.toml")) == key


def test_a_step_has_the_shares(scene: Any, tmp_path: Path) -> None:
    def script(pair_id: str, completion: int, tokens: object) -> str:
        text = scene.answer("yes" if completion == 0 else "no")
        return text.replace('"', "'") if completion == 1 else text

    metrics = scene.coordinator(scene.config(), tmp_path, script).train_step().metrics
    assert metrics["rollout/verdict_form_strict_share"] == 0.75
    assert metrics["rollout/verdict_form_repaired_share"] == 0.25
    assert metrics["rollout/verdict_form_none_share"] == 0
