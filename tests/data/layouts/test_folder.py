"""Folders become disjoint, repeatable splits; everything wrong with them is one line."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saga_dist.data.folder_walk import READ_ALREADY
from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.class_folders import NESTED, NO_CLASS
from saga_dist.data.layouts.division import SplitError, SplitOptions
from saga_dist.data.layouts.folder import load_folder
from saga_dist.errors import DataError


def add_image(path: Path, color: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 12), (color, 0, 0)).save(path)


def make_folder(root: Path, num_classes: int = 12, images: int = 3) -> Path:
    for number in range(num_classes):
        for image in range(images):
            add_image(root / f"c{number:02d}" / f"{image}.png", color=number * 10 + image)
    return root


def load(
    root: Path | str,
    *,
    train_classes: Path | None = None,
    test_classes: Path | None = None,
    val_fraction: float = 0.2,
    image_size: int = 224,
    seed: int = 0,
) -> Splits:
    options = SplitOptions(val_fraction=val_fraction, image_size=image_size, seed=seed)
    return load_folder(root, options, train_classes=train_classes, test_classes=test_classes)


def refused(root: Path | str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        load(root, **{"image_size": 8, **options})
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_first_half_trains_the_second_tests_and_validation_is_held_out_of_training(tmp_path: Path) -> None:
    splits = load(make_folder(tmp_path), val_fraction=0.34, image_size=8, seed=0)
    assert splits.val is not None
    train, val, test = splits.train.class_names, splits.val.class_names, splits.test.class_names
    assert set(train) | set(val) == {f"c{number:02d}" for number in range(6)}
    assert not set(train) & set(val)
    assert len(val) == 2
    assert test == tuple(f"c{number:02d}" for number in range(6, 12))
    assert train == tuple(sorted(train))
    assert splits.names == ("train", "val", "test")
    assert splits.train.labels_I.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert splits.train.labels_I.dtype == np.int64


def test_images_are_read_in_order_with_their_names(tmp_path: Path) -> None:
    test = load(make_folder(tmp_path), image_size=8).test
    assert len(test) == 18
    for index in range(len(test)):
        number, image = 6 + index // 3, index % 3
        assert test.name(index) == f"c{number:02d}/{image}.png"
        want = np.broadcast_to(np.uint8([number * 10 + image, 0, 0]), (8, 8, 3))
        np.testing.assert_array_equal(test.image(index), want)
    assert test.attributes_IA is None


def test_the_seed_decides_the_validation_classes_and_nothing_else(tmp_path: Path) -> None:
    root = make_folder(tmp_path, num_classes=40, images=2)
    first, again, other = (load(root, seed=seed) for seed in (0, 0, 1))
    assert first.val is not None
    assert again.val is not None
    assert other.val is not None
    assert first.val.class_names == again.val.class_names != other.val.class_names
    assert first.test.class_names == other.test.class_names
    assert first.split_hash() == again.split_hash() != other.split_hash()
    assert len(first.val.class_names) == 4


def test_the_split_hash_follows_files_but_not_the_place(tmp_path: Path) -> None:
    here, there = make_folder(tmp_path / "here"), make_folder(tmp_path / "there")
    before = load(here).split_hash()
    assert load(there).split_hash() == before
    (there / "c00" / "notes.txt").write_text("ignored")
    assert load(there).split_hash() == before
    add_image(there / "c00" / "9.png")
    assert load(there).split_hash() != before


def test_no_validation_fraction_means_no_validation_split(tmp_path: Path) -> None:
    splits = load(make_folder(tmp_path, num_classes=4), val_fraction=0.0)
    assert splits.val is None
    assert splits.names == ("train", "test")
    with pytest.raises(DataError, match="no split 'val' in this data set; expected one of train, test"):
        splits.named("val")
    assert splits.named("test") is splits.test


def test_hidden_and_other_files_are_skipped(tmp_path: Path) -> None:
    root = make_folder(tmp_path, num_classes=4)
    (root / "c00" / "._0.png").write_bytes(b"resource fork")
    (root / "c00" / ".DS_Store").write_bytes(b"x")
    (root / "c00" / "readme.md").write_text("x")
    (root / ".cache").mkdir()
    (root / "list.txt").write_text("x")
    add_image(root / "c01" / "X.JPG")
    splits = load(root, val_fraction=0.0)
    assert [splits.train.name(index) for index in range(7)] == [
        "c00/0.png", "c00/1.png", "c00/2.png", "c01/0.png", "c01/1.png", "c01/2.png", "c01/X.JPG",
    ]  # fmt: skip


# ---------------------------------------------------------------------- class lists


def test_two_lists_choose_the_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    (tmp_path / "train.txt").write_text("c07\r\nc01\n\n  c05 \n")
    (tmp_path / "test.txt").write_text("c02\nc00")
    splits = load(root, train_classes=tmp_path / "train.txt", test_classes=tmp_path / "test.txt", val_fraction=0.0)
    assert splits.train.class_names == ("c01", "c05", "c07")
    assert splits.test.class_names == ("c00", "c02")


def test_one_list_leaves_the_rest_to_the_other_side(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images", num_classes=5)
    (tmp_path / "list.txt").write_text("c03\nc04\n")
    trained = load(root, train_classes=tmp_path / "list.txt", val_fraction=0.0)
    assert (trained.train.class_names, trained.test.class_names) == (("c03", "c04"), ("c00", "c01", "c02"))
    tested = load(root, test_classes=tmp_path / "list.txt", val_fraction=0.0)
    assert (tested.train.class_names, tested.test.class_names) == (("c00", "c01", "c02"), ("c03", "c04"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("c01\nc99\n", "list.txt:2: unknown class 'c99'"),
        ("c01\nC02\n", "did you mean 'c02'?"),
        ("../secret\n", "list.txt:1: unknown class '../secret'"),
        ("/etc\n", "unknown class '/etc'"),
        ("c01\na\0b\n", "list.txt:2: a NUL character"),
        ("c01\nc02\nc01\n", "list.txt:3: class 'c01' again (first in line 1); remove it"),
        ("\ufeffc01\n", "list.txt:1: the list begins with a byte order mark; save it as UTF-8 without BOM"),
        ("", "the list is empty"),
        ("\n \n", "the list is empty"),
    ],
)
def test_a_wrong_list_is_one_line_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    root = make_folder(tmp_path / "images")
    (tmp_path / "list.txt").write_text(content, "utf-8")
    assert message in refused(root, train_classes=tmp_path / "list.txt")
    assert message in refused(root, test_classes=tmp_path / "list.txt")


def test_unreadable_and_overlapping_lists_are_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    assert "gone.txt: cannot read the list (No such file" in refused(root, train_classes=tmp_path / "gone.txt")
    (tmp_path / "utf16.txt").write_text("c01\n", "utf-16")
    assert "not UTF-8 text" in refused(root, train_classes=tmp_path / "utf16.txt")
    (tmp_path / "a.txt").write_text("c01\nc02\nc03\n")
    (tmp_path / "b.txt").write_text("c03\nc04\n")
    message = refused(root, train_classes=tmp_path / "a.txt", test_classes=tmp_path / "b.txt")
    assert "class 'c03' is also in" in message


# ---------------------------------------------------------------------- wrong folders


def test_a_missing_empty_or_odd_root_is_refused(tmp_path: Path) -> None:
    assert "cannot read the data set (No such file" in refused(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "Not a directory" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "0 class folders; expected root/<class>/<image>; check data.root" in refused(tmp_path / "empty")
    assert "no folder given" in refused("")
    assert "null" in refused("a\0b")


def test_classes_need_images(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    for image in root.glob("c08/*"):
        image.unlink()
    assert "class 'c08' has no images" in refused(root)
    add_image(root / "c08" / "0.png")
    assert len(load(root).test) == 16  # one image is enough in the test classes
    (root / "c03" / "0.png").unlink()
    (root / "c03" / "1.png").unlink()
    assert "class 'c03' has 1 image in training; expected at least 2" in refused(root)


def test_validation_must_leave_classes_to_train_on(tmp_path: Path) -> None:
    root = make_folder(tmp_path, num_classes=6)
    message = refused(root, val_fraction=0.2)
    assert "3 training classes of which 2 are for validation; expected at least two left" in message
    assert "lower data.val_fraction" in message
    assert len(load(root, val_fraction=0.0).train.class_names) == 3


def left_out(splits: Splits) -> list[tuple[str, str]]:
    return [(one.path, one.reason) for one in splits.left_out]


def test_links_to_images_and_class_folders_are_followed(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    add_image(tmp_path / "outside" / "0.png", color=7)
    (root / "c00" / "link.png").symlink_to(tmp_path / "outside" / "0.png")
    add_image(tmp_path / "elsewhere" / "0.png", color=9)
    (root / "c99").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    splits = load(root, val_fraction=0.0, image_size=8)
    assert splits.train.name(3) == "c00/link.png"
    assert splits.train.image(3)[0, 0, 0] == 7
    assert splits.test.class_names[-1] == "c99"
    assert splits.test.image(len(splits.test) - 1)[0, 0, 0] == 9
    assert splits.left_out == ()


def test_links_that_lead_nowhere_or_back_are_left_out(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    (root / "c00" / "gone.png").symlink_to("nowhere.png")
    (root / "c00" / "self.png").symlink_to("self.png")
    (root / "c00" / "up").symlink_to("..", target_is_directory=True)
    (root / "here").symlink_to(".", target_is_directory=True)
    splits = load(root, val_fraction=0.0)
    assert (len(splits.train), len(splits.test)) == (18, 18)
    assert sorted(left_out(splits)) == [
        ("c00/gone.png", "a link to nowhere"),
        ("c00/self.png", "a link to nowhere"),
        ("c00/up", READ_ALREADY),
        ("here", READ_ALREADY),
    ]


def test_nested_images_and_images_in_no_class_folder_are_left_out(tmp_path: Path) -> None:
    root = make_folder(tmp_path, num_classes=4)
    add_image(root / "c01" / "more" / "deep" / "x.png")
    add_image(root / "c01" / "more" / "y.png")
    add_image(root / "z.png")
    splits = load(root, val_fraction=0.0)
    assert len(splits.train) == 6
    assert sorted(left_out(splits)) == [
        ("c01/more/deep/x.png", NESTED),
        ("c01/more/y.png", NESTED),
        ("z.png", NO_CLASS),
    ]
    for number in range(3):
        (root / "c01" / f"{number}.png").unlink()
    assert f"class 'c01' has no images (left out 2 files: 2 x {NESTED})" in refused(root, val_fraction=0.0)


def test_an_unreadable_class_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path)
    scandir: Any = os.scandir

    def denied(folder: Path) -> Any:
        if Path(folder).name == "c03":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    assert "c03: cannot be read (Permission denied); expected a readable folder of images" in refused(root)


def test_data_that_cannot_be_split_are_listed_all_the_same(tmp_path: Path) -> None:
    root = make_folder(tmp_path, num_classes=3)
    (root / "c00" / "x.xyz").touch()
    with pytest.raises(SplitError) as caught:
        load(root)
    error = pickle.loads(pickle.dumps(caught.value))
    assert "1 training classes; expected at least 2" in str(error)
    assert [len(images) for images in error.listed.values()] == [9]
    assert [one.path for one in error.left_out] == ["c00/x.xyz"]
    (tmp_path / "list.txt").write_text("c99\n")
    with pytest.raises(SplitError, match="unknown class 'c99'") as caught:
        load(root, train_classes=tmp_path / "list.txt")
    assert caught.value.listed["all"].class_names == ("c00", "c01", "c02")


def test_one_file_under_two_names_is_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    (root / "c11" / "again.png").symlink_to("../c00/0.png")
    assert "c11/again.png is the same file as c00/0.png" in refused(root, val_fraction=0.0)
    (root / "c11" / "again.png").unlink()
    (root / "c12").symlink_to("c00", target_is_directory=True)
    assert "is the same file as c00/0.png" in refused(root, val_fraction=0.0)


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    assert load(tmp_path / "link").split_hash() == load(root).split_hash()


def test_special_files_and_unprintable_classes_are_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    os.mkfifo(root / "c00" / "pipe.jpg")
    assert "c00/pipe.jpg: not a regular file" in refused(root)
    (root / "c00" / "pipe.jpg").unlink()
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).mkdir()
    assert "expected a printable name" in refused(root)


def test_a_file_name_that_is_not_utf8_still_works(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "images")
    (root / "c00" / "0.png").rename(os.fsdecode(os.fsencode(root / "c00") + b"/\xff.png"))
    splits = load(root, val_fraction=0.0, image_size=8)
    assert splits.train.image(2).shape == (8, 8, 3)
    assert len(splits.split_hash()) == 64


def test_a_file_deleted_later_is_a_data_error(tmp_path: Path) -> None:
    splits = load(make_folder(tmp_path), image_size=8)
    (tmp_path / "c06" / "0.png").unlink()
    with pytest.raises(DataError, match=r"c06/0.png: cannot read the image \(No such file"):
        splits.test.image(0)
