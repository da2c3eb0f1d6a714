"""Folders train, val and test above the class folders are the splits; anything like them is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.division import SplitError, SplitOptions
from saga_dist.data.layouts.folder import load_folder
from saga_dist.errors import DataError


def make(root: Path, **classes: str) -> Path:
    """Writes two images of each class: ``make(root, train="a b", test="c")``."""
    for split, names in classes.items():
        for name in names.split():
            for number in range(2):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (number, len(name), 0)).save(path)
    return root


def load(root: Path, val_fraction: float = 0.0, **lists: Path) -> Splits:
    return load_folder(root, SplitOptions(val_fraction=val_fraction, image_size=8), **lists)


def refused(root: Path, **lists: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(root, **lists)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_folders_are_the_splits(tmp_path: Path) -> None:
    splits = load(make(tmp_path, train="z y x w", test="a b"))
    assert splits.train.class_names == ("w", "x", "y", "z")
    assert splits.test.class_names == ("a", "b")
    assert splits.val is None
    assert splits.train.name(0) == "train/w/0.png"
    assert splits.train.image(1)[0, 0].tolist() == [1, 1, 0]


@pytest.mark.parametrize("name", ["val", "validation", "Val"])
def test_a_validation_folder_is_the_validation_split(tmp_path: Path, name: str) -> None:
    splits = load(make(tmp_path, train="a b", test="c", **{name: "v w"}), val_fraction=0.5)
    assert splits.val is not None
    assert splits.val.class_names == ("v", "w")
    assert splits.train.class_names == ("a", "b")


def test_without_one_validation_classes_come_from_training(tmp_path: Path) -> None:
    splits = load(make(tmp_path, train="a b c d", test="e"), val_fraction=0.5)
    assert splits.val is not None
    assert set(splits.val.class_names) | set(splits.train.class_names) == {"a", "b", "c", "d"}


def test_a_class_in_two_splits_is_refused_and_its_images_are_listed(tmp_path: Path) -> None:
    make(tmp_path, train="a b c d", test="b c e")
    message = refused(tmp_path)
    assert "class 'b' is in train and in test (and 1 more)" in message
    assert f"set data.root={tmp_path / 'train'}, to divide its classes" in message
    with pytest.raises(SplitError) as caught:
        load(tmp_path)
    assert {split: len(images) for split, images in caught.value.listed.items()} == {"train": 8, "test": 6}
    assert len(load(tmp_path / "train").test) == 4


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"train": "a b", "val": "c"}, "the folders train, val; expected root/train/<class>/<image>"),
        ({"train": "a b", "val": "c", "validation": "d", "test": "e"}, "the folders train, val, validation, test;"),
        ({"train": "a b", "test": "c", "meta": "x"}, "the folders train, test beside 1 more ('meta')"),
    ],
)
def test_nearly_such_folders_are_one_line(tmp_path: Path, classes: dict[str, str], message: str) -> None:
    make(tmp_path, **classes)
    assert message in refused(tmp_path)
    assert "or use data.layout=manifest" in refused(tmp_path)


def test_images_directly_in_the_splits_have_no_class(tmp_path: Path) -> None:
    make(tmp_path, train="a b", test="c")
    for number in range(2):
        (tmp_path / "test" / "c" / f"{number}.png").rename(tmp_path / "test" / f"{number}.png")
    (tmp_path / "test" / "c").rmdir()
    message = refused(tmp_path)
    assert f"{tmp_path / 'test'}: no class folders (left out 2 files: 2 x an image in no class folder)" in message


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make(tmp_path, **{".": "bus plane test train"})
    assert load(tmp_path).test.class_names == ("test", "train")


def test_class_lists_beside_split_folders_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "data", train="a b", test="c")
    (tmp_path / "list.txt").write_text("a\n")
    message = refused(tmp_path / "data", train_classes=tmp_path / "list.txt")
    assert "lists of classes and folders of splits; expected one of the two" in message


def test_what_is_left_out_of_all_folders_is_counted(tmp_path: Path) -> None:
    make(tmp_path, train="a b", test="c")
    for path in ("notes.txt", "train/x.csv", "test/c/y.xyz"):
        (tmp_path / path).write_text("x")
    assert sorted(one.path for one in load(tmp_path).left_out) == ["notes.txt", "test/c/y.xyz", "train/x.csv"]
