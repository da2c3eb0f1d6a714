"""The contract check of data layouts: built-in ones pass, and every way to break the contract is found."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saga_dist.config.registries import LAYOUTS
from saga_dist.data.image_sets import ArrayImageSet, Splits
from saga_dist.data.layouts.division import SplitOptions
from saga_dist.testing.layout import check_layout

ROOT = Path("/unread")


# Birds are drawn, and `tests/data/layouts/test_packed.py` checks the packed layouts.
@pytest.mark.parametrize("name", sorted(LAYOUTS.builtin.keys() - {"birds", "webdataset", "hf_dataset"}))
def test_built_in_layouts_hold_the_contract(
    name: str, layout_makers: dict[str, Callable[[Path], object]], tmp_path: Path
) -> None:
    if name == "folder":
        for number in range(16):
            path = tmp_path / f"c{number % 8}" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (20, 30), 10 * number).save(path)
    else:
        layout_makers[name](tmp_path)
    check_layout(LAYOUTS.load(name), tmp_path, SplitOptions(val_fraction=0.0, image_size=16))


def images_of(names: str, *, labels: Any = None, size: int = 32) -> ArrayImageSet:
    """Two images for each class, which is one letter."""
    labels_I = np.repeat(np.arange(len(names)), 2) if labels is None else labels
    values = np.random.default_rng(0).integers(0, 256, (len(labels_I), size, size, 3), dtype=np.uint8)
    return ArrayImageSet(values, labels_I, tuple(names))


GOOD = Splits(images_of("abc"), images_of("de"), images_of("fgh"), gallery=images_of("fgh"))


def test_splits_in_memory_hold_it() -> None:
    check_layout(lambda root, options: GOOD, ROOT)


class Unnamed(ArrayImageSet):
    def name(self, index: int) -> str:
        return "image"


class Grey(ArrayImageSet):
    def original(self, index: int) -> Image.Image:
        return super().original(index).convert("L")


class WrongLabels(ArrayImageSet):
    def __post_init__(self) -> None:
        object.__setattr__(self, "labels_I", np.asarray(self.labels_I, dtype=np.int32))


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        (replace(GOOD, train=images_of("abf")), "class 'f' is in train and in test"),
        (replace(GOOD, val=images_of("ab")), "class 'a' is in train and in val"),
        (replace(GOOD, train=images_of("a")), "fewer than two training classes"),
        (replace(GOOD, train=images_of("ab", labels=[0, 1, 1])), "train: a class has fewer than two images"),
        (replace(GOOD, train=images_of("aa")), "two classes have one name"),
        (replace(GOOD, test=images_of("xyz", size=31), gallery=None), r"uint8 \(31, 31, 3\), not uint8 \(32, 32, 3\)"),
        (replace(GOOD, val=images_of("de", labels=[])), "val: no images"),
        (replace(GOOD, train=Unnamed(GOOD.train.images, GOOD.train.labels_I, ("a", "b", "c"))), "two images have one"),
        (replace(GOOD, train=Grey(GOOD.train.images, GOOD.train.labels_I, ("a", "b", "c"))), "is L, not RGB"),
        (replace(GOOD, train=WrongLabels(GOOD.train.images, GOOD.train.labels_I, ("a", "b", "c"))), "int32, not int64"),
    ],
)
def test_a_broken_contract_is_found(splits: Splits, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_layout(lambda root, options: splits, ROOT)


def test_what_is_no_split_is_found() -> None:
    with pytest.raises(AssertionError, match="returned a dict, not Splits"):
        check_layout(lambda root, options: {}, ROOT)


def test_splits_that_change_are_found() -> None:
    calls = itertools.count()
    with pytest.raises(AssertionError, match="a second call found another split"):
        check_layout(lambda root, options: replace(GOOD, train=images_of("abc"[next(calls) :])), ROOT)


def test_keys_of_the_layout_reach_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        check_layout(lambda root, options, manifest: 1 / len(manifest), tmp_path, manifest="")
