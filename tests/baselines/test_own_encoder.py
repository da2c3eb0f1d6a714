"""An encoder of one's own behind ``--encoder py:``: its figures, its options, and one line for whatever is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from saga_dist.baselines.frozen_encoder import open_encoder, parse_spec
from saga_dist.cli.main import main
from saga_dist.errors import ConfigError
from saga_dist.testing.encoder import check_encoder

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
FEW_BIRDS = ["data.birds.test_images_per_class=2", "data.birds.val_images_per_class=2"]

OWN = """
import numpy as np
from saga_dist.baselines.frozen_encoder import EncoderCard

class Colours:
    def __init__(self, spec, device):
        self._side, self._scale = int(spec.options.get("side", "4")), float(spec.options.get("scale", "1"))
        self.card = EncoderCard(
            spec=spec.text, backbone="colours", pretraining="none", pooling="none", preprocessing="resized",
            dimension=3 * self._side**2, parameters=1, image_height=self._side, image_width=self._side,
        )

    def encode(self, images):
        size = (self._side, self._side)
        values = np.stack([np.asarray(image.resize(size), np.float32).flatten() - 127 for image in images])
        return values / np.linalg.norm(values, axis=1, keepdims=True) * np.float32(self._scale)

def nothing(spec, device):
    return None

def bare(spec):
    return Colours(spec, None)
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "encoder_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


def evaluate(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], encoder: str, *more: str
) -> tuple[int, str, str]:
    arguments = ["--encoder", encoder, str(ROOT / "configs" / "birds.toml"), *FEW_BIRDS, *more]
    monkeypatch.setattr(sys, "argv", ["saga-dist", "evaluate", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capfd.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_it_holds_the_contract_and_gets_its_options() -> None:
    spec = parse_spec("py:encoder_of_mine:Colours?side=8&scale=1")
    assert (spec.kind, spec.name) == ("py", "encoder_of_mine:Colours")
    assert spec.options == {"side": "8", "scale": "1"}
    encoder = open_encoder(spec.text, CPU)
    assert encoder.card.dimension == 192
    check_encoder(encoder)


@pytest.mark.integration
def test_its_figures_stand_beside_the_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "row.json"
    code, out, _ = evaluate(monkeypatch, capfd, "py:encoder_of_mine:Colours?side=2", "--json", str(file))
    assert code == 0 and "colours" in out
    row = json.loads(file.read_text())
    assert row["encoder"]["dimension"] == 12
    assert row["result"]["num_queries"] == 100
    assert 0 < row["result"]["recall_at_1"] < 1


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("py:encoder_of_mine", "expected timm:NAME, hf:PATH, run:DIR or py:package.module:object"),
        ("py:encoder_of_mine:nothing", "returned a NoneType; expected an encoder"),
        ("py:encoder_of_mine:bare", "too many positional arguments); expected the arguments (spec, device)"),
        ("py:encoder_of_mine:absent", "encoder_of_mine has no 'absent'"),
        ("py:nowhere_at_all:Encoder", "no module 'nowhere_at_all' on node"),
        ("py:encoder_of_mine:Colours?side=x", "raised ValueError: invalid literal for int()"),
        ("py:encoder_of_mine:Colours?scale=2", "gives embeddings that are not l2-normalised"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(
    encoder: str, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, error = evaluate(monkeypatch, capfd, encoder)
    assert code == 2
    assert said in error
    assert error.startswith("error: --encoder") and error.count("\n") == 1


def test_other_kinds_take_no_import_path() -> None:
    with pytest.raises(ConfigError, match="--encoder 'foo:encoder_of_mine:Colours'"):
        parse_spec("foo:encoder_of_mine:Colours")
