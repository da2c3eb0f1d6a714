"""``--dry-run`` on engines, families and layouts: built-ins cost nothing, one's own are imported last and checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from saga_dist.config import RunConfig, load_config
from saga_dist.errors import ConfigError, DataError, ModelError
from saga_dist.runtime.preflight import describe

ROOT = Path(__file__).resolve().parents[2]
BIRDS = ROOT / "configs" / "birds.toml"
SMALL = ["data.val_fraction=0", "data.batch_size=12", "data.images_per_class=3", "rollout.pairs_per_batch=8"]
"""Overrides that fit the folder of ``make_folder``, which has four training classes of three images."""

OWN = """
from saga_dist.models.families.qwen3_vl.family import Qwen3VLFamily

class Family(Qwen3VLFamily):
    pass

def engine(context):
    raise AssertionError("a dry run starts no engine")

def layout(root, options):
    from saga_dist.data.layouts.folder import load_folder
    return load_folder(root, options)

NUMBER = 3
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module, which a test finds as it was never imported."""
    (tmp_path / "parts_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "parts_of_mine", raising=False)


def config_of(*overrides: str) -> RunConfig:
    return load_config(BIRDS, overrides)


def make_folder(root: Path) -> Path:
    for number in range(24):
        path = root / f"c{number % 8}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 30), 10 * number).save(path)
    return root


def test_built_ins_are_not_imported(tiny_checkpoint: Path, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data")
    model = f"model.path={tiny_checkpoint}"
    folder = [f"data.root={data}", "data.layout=folder", *SMALL]
    runs = [
        ["rollout.engine=vllm", "model.family=qwen3_vl", model],
        ["rollout.engine=transformers", "model.family=auto", model, *folder],
    ]
    code = (
        "import sys, pathlib\n"
        "from saga_dist.config import load_config\n"
        "from saga_dist.runtime.preflight import describe\n"
        f"for run in {runs!r}: print(describe(load_config({str(BIRDS)!r}, run), pathlib.Path('run')))\n"
        "print('HEAVY', *sorted({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY"
    assert done.stdout.count(f"{tiny_checkpoint} (qwen3_vl)") == 2
    assert f"{data}: train 4 classes, 12 images" in done.stdout


def test_ones_own_are_named_in_the_plan(tiny_checkpoint: Path, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data")
    plan = describe(
        config_of(
            "rollout.engine=parts_of_mine:engine",
            "model.family=parts_of_mine:Family",
            f"model.path={tiny_checkpoint}",
            "data.layout=parts_of_mine:layout",
            f"data.root={data}",
            *SMALL,
        ),
        tmp_path / "run",
    )
    assert f"{tiny_checkpoint} (parts_of_mine:Family)" in plan
    assert "rollouts parts_of_mine:engine, 1 worker(s)" in plan
    assert "train 4 classes, 12 images; test 4 classes, 12 images" in plan


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rollout.engine=parts_of_mine:NUMBER", "rollout.engine: 'parts_of_mine:NUMBER' is a int; expected a callable"),
        ("rollout.engine=nowhere.at_all:engine", "rollout.engine: 'nowhere.at_all:engine': no module 'nowhere'"),
        ("model.family=parts_of_mine:engine", "model.family: 'parts_of_mine:engine' is no family; expected a subclass"),
        (
            "data.layout=parts_of_mine:engine",
            "data.layout: 'parts_of_mine:engine' cannot be called (too many",
        ),
        ("data.layout=parts_of_mine:absent", "data.layout: 'parts_of_mine:absent': parts_of_mine has no 'absent'"),
    ],
)
def test_what_is_wrong_is_one_line(override: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        describe(config_of(override), tmp_path / "run")
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["model.path=/nowhere"], ModelError),
        (["data.layout=folder", "data.root=/nowhere"], DataError),
    ],
)
def test_other_mistakes_are_found_before_ones_own_code_runs(
    overrides: list[str], error: type[Exception], tmp_path: Path
) -> None:
    own = ["rollout.engine=parts_of_mine:engine", "model.family=parts_of_mine:Family"]
    with pytest.raises(error, match="/nowhere"):
        describe(config_of(*own, *overrides), tmp_path / "run")
    assert "parts_of_mine" not in sys.modules
