"""A model family of one's own by import path: it trains, and its encoder loads only where the family is named."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import saga_dist
from saga_dist.cli import main as cli
from saga_dist.cli.doctor_checks import run_checks
from saga_dist.config import load_config
from saga_dist.errors import ConfigError, ModelError
from saga_dist.estimate.shapes import model_shape
from saga_dist.export.folder import export_encoder
from saga_dist.models.encoder import Encoder
from saga_dist.models.families import load_family_class, resolve_family
from saga_dist.models.pooler import Pooler
from saga_dist.retrieval.identity import read_identity
from saga_dist.testing.family import check_model_family

OWN = """
import torch
from saga_dist.models.families.base import Family
from saga_dist.models.families.qwen3_vl.family import Qwen3VLFamily
from saga_dist.models.families.qwen3_vl.tower import Qwen3VLTower

class Tower(Qwen3VLTower):
    family = "family_of_mine:Owned"

    def forward(self, batch):
        return super().forward(batch) + 1

class Owned(Qwen3VLFamily):
    name = "owned"
    tower_class = Tower

class Borrowed(Qwen3VLFamily):
    name = "borrowed"

class Half(Family):
    name = "half"

class Plain(Family):
    # All that a family must have, and no more.

    name = "plain"
    image_placeholder, chat_format = Qwen3VLFamily.image_placeholder, Qwen3VLFamily.chat_format

    def __init__(self, files, config):
        super().__init__(files, config)
        self._inner = Qwen3VLFamily(files, config)

    layout = property(lambda self: self._inner.layout)
    forbidden_token_ids = property(lambda self: self._inner.forbidden_token_ids)

    def load_tower(self, **options):
        return self._inner.load_tower(**options)

    def load_backbone(self, **options):
        return self._inner.load_backbone(**options)

    def load_tokenizer(self):
        return self._inner.load_tokenizer()

    def image_inputs(self, tokens):
        return self._inner.image_inputs(tokens)

    @classmethod
    def rebuild_tower(cls, description, folder, *, dtype):
        return Qwen3VLFamily.rebuild_tower(description, folder, dtype=dtype)

def function(files, config):
    return None

class Breaks(Qwen3VLFamily):
    def __init__(self, files, config):
        raise ValueError(config["absent"])
"""

NAME = "family_of_mine:Owned"

CONFIG = """
[run]
steps = 2
[data]
layout = "birds"
image_size = 80
batch_size = 8
images_per_class = 2
[data.birds]
train_classes = 4
train_images_per_class = 3
val_images_per_class = 2
test_images_per_class = 2
probe_images = 0
[prompt]
vocabulary = "standin_birds"
[model]
path = "MODEL"
family = "family_of_mine:Owned"
dtype = "float32"
embedding_dim = 16
[objective]
metric_loss = "proxy_anchor"
kl_layer = 1
[rollout]
engine = "transformers"
pairs_per_batch = 4
group_size = 2
max_micro_batches = 1
max_tokens = 8
[runtime]
kind = "serial"
"""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module, which a test finds as it was never imported."""
    (tmp_path / "family_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "family_of_mine", raising=False)


@pytest.fixture
def config(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    file = tmp_path / "run.toml"
    file.write_text(CONFIG.replace("MODEL", str(tiny_checkpoint)))
    return file


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs ``saga-dist``; returns exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["saga-dist", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capfd.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.mark.integration
def test_it_holds_the_contract(tiny_checkpoint: Path) -> None:
    check_model_family(load_family_class(NAME), tiny_checkpoint)
    check_model_family(load_family_class("family_of_mine:Borrowed"), tiny_checkpoint)
    check_model_family(load_family_class("family_of_mine:Plain"), tiny_checkpoint)


@pytest.mark.integration
def test_it_trains_and_its_encoder_is_loaded_only_where_it_is_named(
    config: Path, command: Command, tmp_path: Path
) -> None:
    run, photos = tmp_path / "run", tmp_path / "photos"
    photos.mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (90, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.png")
    assert f"({NAME})" in command("train", config, "--run-dir", run, "--dry-run")[1]
    code, _, error = command("train", config, "--run-dir", run)
    assert code == 0, error
    assert json.loads((run / "model" / "config.json").read_text())["family"] == NAME
    assert read_identity(run / "model").family == NAME

    del sys.modules["family_of_mine"]
    with pytest.raises(ModelError) as caught:
        saga_dist.load(run / "model")
    assert "family_of_mine" not in sys.modules, "a folder alone made code run"
    assert f'saga_dist.load(path, family="{NAME}"), or --family {NAME}' in str(caught.value)
    assert "\n" not in str(caught.value)
    encoder = saga_dist.load(run / "model", family=NAME)
    expected_IE = encoder.encode([photos / "0.png", photos / "1.png"])
    assert type(encoder.tower).__module__ == "family_of_mine"

    # A run names its family in its own configuration; everything else must be told.
    assert command("evaluate", run)[0] == 0
    out, index = tmp_path / "photos.parquet", tmp_path / "photos.index"
    code, _, error = command("embed", run, photos, "--out", out)
    assert code == 2 and "--family" in error
    assert command("embed", run, photos, "--out", out, "--family", NAME)[0] == 0
    assert command("index", out, "--out", index)[0] == 0
    assert command("search", index, photos / "1.png", "-k", 1)[0] == 2
    code, found, _ = command("search", index, photos / "1.png", "-k", 1, "--family", NAME)
    assert code == 0 and found.split()[1:] == ["1.0000", str(photos / "1.png")]
    assert command("export", run, "--out", tmp_path / "hf")[0] == 2
    code, _, error = command("export", run, "--out", tmp_path / "hf", "--family", NAME)
    assert code == 0, error
    exported_IE = saga_dist.load(tmp_path / "hf", family=NAME).encode([photos / "0.png", photos / "1.png"])
    np.testing.assert_array_equal(exported_IE, expected_IE)
    data = [config, "data.birds.test_images_per_class=2"]
    assert command("evaluate", "--encoder", f"run:{run}", *data)[0] == 2
    assert command("evaluate", "--encoder", f"run:{run}?family={NAME}", *data)[0] == 0


def test_a_family_that_borrows_a_built_in_tower_leaves_an_encoder_of_that_family(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tower = resolve_family(tiny_checkpoint, family="family_of_mine:Borrowed").load_tower()
    Encoder(tower, Pooler(width=tower.layout.width, embedding_dim=8, seed=0), image_size=80).save(tmp_path / "model")
    assert saga_dist.load(tmp_path / "model").tower.family == "qwen3_vl"


def test_sentence_transformers_loads_it_where_it_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from saga_dist.export.st_module import load_model

    tower = resolve_family(tiny_checkpoint, family=NAME).load_tower()
    encoder = Encoder(tower, Pooler(width=tower.layout.width, embedding_dim=8, seed=0), image_size=80)
    encoder.save(tmp_path / "model")
    folder = tmp_path / "st"
    export_encoder(tmp_path / "model", folder, form="sentence-transformers", family=NAME)
    with pytest.raises(ModelError, match="which is not built in"):
        load_model(folder, device="cpu")
    model = load_model(folder, device="cpu", family=NAME)
    images = [np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)]
    np.testing.assert_allclose(model.encode(images), encoder.encode(images), atol=1e-6)


def test_a_named_family_needs_no_known_configuration(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "renamed"
    shutil.copytree(tiny_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["MyQwen3VL"]}))
    with pytest.raises(ModelError, match="architecture MyQwen3VL is not supported"):
        resolve_family(folder)
    assert resolve_family(folder, family="qwen3_vl").name == "qwen3_vl"
    assert resolve_family(folder, family=NAME).name == "owned"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("family_of_mine:function", "'family_of_mine:function' is no family; expected a subclass of"),
        ("family_of_mine:Tower", "'family_of_mine:Tower' is no family"),
        (
            "family_of_mine:Half",
            "'family_of_mine:Half' does not define forbidden_token_ids, image_inputs, layout",
        ),
        ("family_of_mine:Absent", "family_of_mine has no 'Absent'"),
        ("family_of_mine:Breaks", "'family_of_mine:Breaks' raised KeyError: 'absent'"),
        ("qwen4_vl", "unknown model family 'qwen4_vl'; expected one of qwen3_vl, qwen2_5_vl, internvl, or package"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(name: str, said: str, tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_family(tiny_checkpoint, family=name)
    assert str(caught.value).startswith("model.family: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_estimates_and_the_doctor_know_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_checks(config, [], smoke=True) == 0
    capacity = next(line for line in capsys.readouterr().out.splitlines() if " capacity: " in line)
    assert "expected 1 x this processor: learner" in capacity


def test_sizes_that_a_family_does_not_tell_are_no_fault_of_the_machine(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = "model.family=family_of_mine:Plain"
    said = "the sizes of model family .plain. are not known; expected a subclass of"
    with pytest.raises(ModelError, match=said), model_shape(load_config(config, [plain])):
        pass
    assert run_checks(config, [plain], smoke=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok   capacity: not estimated (") for line in lines)
    assert any(line.startswith("WARN one pair: transformers ready") for line in lines)  # its 8 tokens are cut off
