"""A layout of one's own by import path: what it gets, and one line for whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from saga_dist.config import DataSection
from saga_dist.data.layouts import load_splits
from saga_dist.errors import ConfigError, DataError, SagaError
from saga_dist.runtime.build import build_splits

OWN = """
import numpy as np
from saga_dist.data.image_sets import ArrayImageSet, Splits

seen = []

def images(names, size):
    labels = np.repeat(np.arange(len(names)), 3)
    return ArrayImageSet(np.zeros((len(labels), size, size, 3), np.uint8), labels, tuple(names))

def drawn(root, options):
    seen.append((root, options))
    return Splits(images("abc", options.image_size), None, images("de", options.image_size))

def listed(root, options, *, manifest):
    return Splits(images(manifest, 8), None, images("xy", 8))

def nothing(root, options):
    return None

def only_root(root):
    return None

def breaks(root, options):
    raise KeyError("class")
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "layouts_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


def section(name: str, **data: object) -> DataSection:
    return DataSection(**{"layout": f"layouts_of_mine:{name}", **data})  # type: ignore[arg-type]


def test_it_gets_root_and_options_of_the_run() -> None:
    data = section("drawn", root="/data", val_fraction=0.3, image_size=16, fast_jpeg=True)
    splits = build_splits(data, seed=5)
    assert splits.train.class_names == ("a", "b", "c")
    import layouts_of_mine

    root, options = layouts_of_mine.seen[-1]
    assert root == Path("/data")
    assert (options.val_fraction, options.image_size, options.seed, options.fast_jpeg) == (0.3, 16, 5, True)


def test_it_may_do_without_a_root() -> None:
    assert len(load_splits(section("drawn"), seed=0).test) == 6


def test_it_gets_the_keys_that_are_set() -> None:
    assert load_splits(section("listed", manifest="pqr"), seed=0).train.class_names == ("p", "q", "r")


def test_the_split_hash_pins_it_too() -> None:
    pin = load_splits(section("drawn"), seed=0).split_hash()
    load_splits(section("drawn", split_hash=pin), seed=0)
    with pytest.raises(DataError, match="split hash"):
        load_splits(section("drawn", split_hash=pin, image_size=32), seed=0)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("nothing", {}, "returned a NoneType; expected Splits"),
        ("only_root", {}, "too many positional arguments); expected the arguments (root, options)"),
        (
            "drawn",
            {"manifest": "x"},
            "unexpected keyword argument 'manifest'); expected the arguments (root, ",
        ),
        ("listed", {}, "missing a required argument: 'manifest'); expected the arguments (root, options)"),
        ("breaks", {}, "'layouts_of_mine:breaks' raised KeyError: 'class'"),
        ("absent", {}, "layouts_of_mine has no 'absent'; check the name"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(name: str, data: dict[str, object], said: str) -> None:
    with pytest.raises(SagaError) as caught:
        load_splits(section(name, **data), seed=0)
    assert type(caught.value) is ConfigError
    assert str(caught.value).startswith("data.layout: 'layouts_of_mine:") and said in str(caught.value)
    assert "\n" not in str(caught.value)
