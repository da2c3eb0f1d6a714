"""The example of an own layout: it holds the contract, its mistakes are one line, and a run trains on its images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from saga_dist.config import DataSection
from saga_dist.config.registries import LAYOUTS
from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts import load_splits
from saga_dist.data.layouts.division import SplitOptions
from saga_dist.errors import DataError
from saga_dist.testing.layout import check_layout

NAME = "own_layout:load_json_lines"


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Nine classes of three images, the first six to train on."""
    root, rows, generator = tmp_path / "data", [], np.random.default_rng(0)
    for number in range(9):
        for image in range(3):
            path = root / f"folder_{image}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
            split = "train" if number < 6 else "test"
            rows.append({"image": f"folder_{image}/{number}.png", "class": f"c{number}", "split": split})
    (root / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def splits_of(root: Path, **data: str) -> Splits:
    return load_splits(DataSection(layout=NAME, root=str(root), val_fraction=0.0, **data), seed=0)


def test_it_holds_the_contract(example: Callable[[str], ModuleType], data_set: Path) -> None:
    check_layout(LAYOUTS.load(NAME), data_set)
    check_layout(LAYOUTS.load(NAME), data_set, SplitOptions(val_fraction=0.0, image_size=20, seed=3))


def test_classes_are_those_of_the_list(example: Callable[[str], ModuleType], data_set: Path) -> None:
    splits = LAYOUTS.load(NAME)(data_set, SplitOptions(val_fraction=0.0))
    assert splits.train.class_names == ("c0", "c1", "c2", "c3", "c4", "c5")
    assert splits.test.class_names == ("c6", "c7", "c8")
    assert splits.train.name(4) == "folder_1/1.png"
    assert splits.train.labels_I.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]


def test_the_list_is_named_by_data_manifest(example: Callable[[str], ModuleType], data_set: Path) -> None:
    (data_set / "images.jsonl").rename(data_set / "other.jsonl")
    splits_of(data_set, manifest="other.jsonl")
    with pytest.raises(DataError, match=r"images\.jsonl is missing"):
        splits_of(data_set)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not a line of the list"),
        ('{"image": "a.png", "class": "c0"}', "not a line of the list ('split')"),
        ('{"image": "folder_0/0.png", "class": "x", "split": "dev"}', "split 'dev'; expected train or test"),
        ('{"image": "folder_0/0.png", "class": "c7", "split": "train"}', "class 'c7' is in train and in test"),
        ('{"image": "nowhere.png", "class": "c7", "split": "test"}', "nowhere.png is missing"),
    ],
)
def test_a_wrong_line_is_named(example: Callable[[str], ModuleType], data_set: Path, line: str, said: str) -> None:
    with (data_set / "images.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError) as caught:
        splits_of(data_set)
    assert said in str(caught.value)
    assert f"{data_set}/images.jsonl:28" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.integration
def test_two_steps_train_on_its_images(
    example: Callable[[str], ModuleType], data_set: Path, train: Callable[..., str], tmp_path: Path
) -> None:
    data = [f"data.layout={NAME}", f"data.root={data_set}", "data.val_fraction=0.34"]
    assert f"{data_set}: train 4 classes, 12 images; validation 2 classes" in train(*data, "--dry-run")
    train(*data)
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["step"] for row in steps} >= {1, 2}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["methods"][1]["splits"]["test"]["num_queries"] == 9
