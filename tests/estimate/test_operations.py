"""Operations of the tower's backward pass, by the part of the tower that trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga_dist.config import load_config
from saga_dist.estimate.operations import encoder_backward, encoder_forward
from saga_dist.estimate.shapes import model_shape

BIRDS = Path(__file__).resolve().parents[2] / "configs" / "birds.toml"


@pytest.mark.parametrize(
    ("train", "linear", "attention"),
    [
        ("all", 2.0, 2.0),
        ("last:1", 2 / 3, 2 / 3),  # one of three blocks
        ("last:3", 2.0, 2.0),
        ("lora", 1.0, 2.0),  # constant weights have no gradient of their own
    ],
)
def test_the_backward_pass_runs_through_what_trains(
    train: str, linear: float, attention: float, family_checkpoint: Path
) -> None:
    config = load_config(BIRDS, [f"model.path={family_checkpoint}", f"model.train={train}"])
    with model_shape(config) as shape:
        tower = shape.tower
    of_attention = 4.0 * tower.attention_macs
    of_linear = encoder_forward(tower) - of_attention
    expected = linear * of_linear + attention * of_attention
    assert encoder_backward(tower, checkpointing=False) == pytest.approx(expected)
    again = encoder_forward(tower) * (1 / 3 if train == "last:1" else 1)
    assert encoder_backward(tower, checkpointing=True) == pytest.approx(expected + again)
