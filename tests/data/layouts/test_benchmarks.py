"""Every layout with lists, on a made-up tree: who is where, and every wrong list is one line with its place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saga_dist.config import DataSection
from saga_dist.config.registries import LAYOUTS
from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts import load_splits
from saga_dist.errors import DataError

WITH_LISTS = ("cub", "aircraft", "sop", "inshop", "manifest")
Make = Callable[..., Any]


def load(layout: str, root: Path | str, *, seed: int = 0, **data: Any) -> Splits:
    return load_splits(DataSection(**{"layout": layout, "root": str(root), "val_fraction": 0.0, **data}), seed=seed)


def refused(layout: str, root: Path | str, **data: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(layout, root, **data)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------- what is right


@pytest.mark.parametrize("layout", [*WITH_LISTS, "inat"])
def test_images_get_their_classes_and_sides(layout: str, make_tree: Make, classes_of: Make, tmp_path: Path) -> None:
    tree = make_tree(layout, tmp_path)
    splits = load(layout, tmp_path)
    assert classes_of(splits.train) == tree.train
    assert classes_of(splits.test) == tree.test
    assert classes_of(splits.gallery) == tree.gallery
    assert list(splits.train.class_names) == sorted(set(tree.train.values()))
    assert list(splits.test.class_names) == sorted(set(tree.test.values()))
    assert splits.names == ("train", "test", "gallery") if tree.gallery else ("train", "test")


@pytest.mark.parametrize("layout", [*WITH_LISTS, "inat"])
def test_the_order_of_lines_changes_nothing(layout: str, make_tree: Make, tmp_path: Path) -> None:
    make_tree(layout, tmp_path / "one", seed=1)
    make_tree(layout, tmp_path / "two", seed=2)
    one, two = (load(layout, tmp_path / name) for name in ("one", "two"))
    assert one.split_hash() == two.split_hash()
    assert [one.train.name(i) for i in range(len(one.train))] == [two.train.name(i) for i in range(len(two.train))]


@pytest.mark.parametrize("layout", [*WITH_LISTS, "inat"])
def test_every_image_is_read_whatever_its_mode(layout: str, make_tree: Make, tmp_path: Path) -> None:
    make_tree(layout, tmp_path)
    splits = load(layout, tmp_path, image_size=16)
    for name in splits.names:
        images = splits.named(name)
        for index in range(len(images)):
            pixels = images.image(index)
            assert pixels.shape == (16, 16, 3)
            assert np.ptp(pixels) <= 3  # one grey level each; the aircraft's white banner is gone


@pytest.mark.parametrize("layout", [*WITH_LISTS, "inat"])
def test_validation_classes_come_out_of_the_training_classes(
    layout: str, make_tree: Make, classes_of: Make, tmp_path: Path
) -> None:
    tree = make_tree(layout, tmp_path)
    splits = load(layout, tmp_path, val_fraction=0.4)
    assert splits.val is not None
    assert len(splits.val.class_names) == 2
    assert classes_of(splits.train) | classes_of(splits.val) == tree.train
    assert not set(splits.train.class_names) & set(splits.val.class_names)
    assert splits.split_hash() != load(layout, tmp_path).split_hash()
    assert splits.split_hash() == load(layout, tmp_path, val_fraction=0.4).split_hash()


def test_the_folder_itself_may_be_given(make_tree: Make, tmp_path: Path) -> None:
    for layout, inner in (
        ("cub", "CUB_200_2011"),
        ("aircraft", "fgvc-aircraft-2013b/data"),
        ("aircraft", "fgvc-aircraft-2013b"),
        ("sop", "Stanford_Online_Products"),
        ("inat", "train_mini"),
    ):
        outer = tmp_path / layout
        if not outer.exists():
            make_tree(layout, outer)
        assert load(layout, outer / inner).split_hash() == load(layout, outer).split_hash()


def test_another_seed_holds_out_other_classes(make_tree: Make, tmp_path: Path) -> None:
    make_tree("cub", tmp_path, classes=40, images=2)
    names = {load("cub", tmp_path, val_fraction=0.2, seed=seed).named("val").class_names for seed in range(5)}
    assert len(names) == 5
    assert {len(part) for part in names} == {4}


def test_a_pinned_split_hash_refuses_other_data(make_tree: Make, tmp_path: Path) -> None:
    tree = make_tree("cub", tmp_path)
    pin = load("cub", tmp_path).split_hash()
    assert load("cub", tmp_path, split_hash=pin).split_hash() == pin
    assert f"expected data.split_hash = {pin}; restore files" in refused(
        "cub", tmp_path, split_hash=pin, val_fraction=0.4
    )
    path = tmp_path / "CUB_200_2011" / next(iter(tree.test))
    path.write_bytes(path.read_bytes() + b"!")
    assert "split hash " in refused("cub", tmp_path, split_hash=pin)
    with pytest.raises(ValueError, match="split_hash"):
        DataSection(layout="cub", root="/x", split_hash="abc")


# ---------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("layout", sorted(LAYOUTS.builtin.keys() - {"birds"}))
def test_a_missing_or_empty_root_is_one_line(layout: str, tmp_path: Path) -> None:
    assert "cannot read the data set (No such file" in refused(layout, tmp_path / "nowhere")
    assert str(tmp_path) in refused(layout, tmp_path)
    (tmp_path / "file").touch()
    assert "Not a directory" in refused(layout, tmp_path / "file")


@pytest.mark.parametrize("layout", WITH_LISTS)
def test_lists_that_are_no_text_are_refused_with_their_place(layout: str, make_tree: Make, tmp_path: Path) -> None:
    tree = make_tree(layout, tmp_path)
    for path in tree.lists:
        content = path.read_bytes()
        lines = content.split(b"\n")
        for damage, expected in (
            (b"", f"{path}: the "),
            (b"\n \n" if layout != "manifest" else b"\n\n", f"{path}: the "),
            (b"\n".join([*lines[:3], b"\xff\xfe" + lines[3], *lines[4:]]), f"{path}:4: not UTF-8 text"),
            (b"\n".join([*lines[:3], lines[3] + b"\0", *lines[4:]]), f"{path}:4: a NUL character"),
        ):
            path.write_bytes(damage)
            assert expected in refused(layout, tmp_path)
        path.write_bytes(b"\xef\xbb\xbf" + content)
        if layout == "manifest":
            load(layout, tmp_path)
        else:
            assert f"{path}:1: the list begins with a byte order mark" in refused(layout, tmp_path)
        path.write_bytes(content.replace(b"\n", b"\r\n"))
        load(layout, tmp_path)
        path.unlink()
        path.mkdir()
        assert "not a regular file" in refused(layout, tmp_path)
        path.rmdir()
        assert path.name in refused(layout, tmp_path) or layout == "manifest"
        path.write_bytes(content)


@pytest.mark.parametrize("layout", WITH_LISTS)
def test_paths_that_leave_the_data_set_are_refused(layout: str, make_tree: Make, tmp_path: Path) -> None:
    tree = make_tree(layout, tmp_path / "data")
    Image.new("RGB", (30, 30)).save(tmp_path / "secret.jpg")
    path = tree.lists[0]
    content = path.read_text()
    images = [image.removeprefix("images/") if layout in ("cub", "aircraft") else image for image in tree.train]
    listed = next(name for name in (image.removesuffix(".jpg") for image in images) if name in content)
    number = next(number for number, line in enumerate(content.split("\n"), start=1) if listed in line)
    for bad in ("../../../secret", "/etc/passwd", f"{tmp_path}/secret"):
        path.write_text(content.replace(listed, bad))
        message = refused(layout, tmp_path / "data")
        assert f"{path}:{number}: path '{bad}" in message
        assert "expected a path below the data set's folder" in message


@pytest.mark.parametrize("layout", WITH_LISTS)
def test_missing_files_links_and_special_files_are_refused(layout: str, make_tree: Make, tmp_path: Path) -> None:
    tree = make_tree(layout, tmp_path / "data")
    splits = load(layout, tmp_path / "data")
    first, other = (splits.train.root / splits.train.name(index) for index in (0, 1))  # type: ignore[attr-defined]
    content = first.read_bytes()
    first.unlink()
    message = refused(layout, tmp_path / "data")
    assert f"{splits.train.name(0)} is missing; expected it below" in message
    assert message.startswith(tuple(f"{path}:" for path in tree.lists))
    moved = other.rename(other.with_suffix(".away"))
    assert "is missing (and 1 more)" in refused(layout, tmp_path / "data")
    moved.rename(other)
    os.mkfifo(first)
    assert f"{first}: not a regular file" in refused(layout, tmp_path / "data")
    first.unlink()
    (tmp_path / "outside.jpg").write_bytes(content)
    first.symlink_to(tmp_path / "outside.jpg")
    assert f"{first}: a link out of the data set" in refused(layout, tmp_path / "data")
    first.unlink()
    first.symlink_to(other)
    assert "is the same file as" in refused(layout, tmp_path / "data")
    first.unlink()
    first.symlink_to("nothing.jpg")
    assert "a link to nowhere" in refused(layout, tmp_path / "data")
    first.unlink()
    inside = splits.train.root / "elsewhere.jpg"  # type: ignore[attr-defined]
    inside.write_bytes(content)
    first.symlink_to(inside)
    assert load(layout, tmp_path / "data").split_hash() == splits.split_hash()


def test_a_folder_that_is_a_link_out_of_the_data_set_is_refused(make_tree: Make, tmp_path: Path) -> None:
    make_tree("cub", tmp_path / "data")
    folder = tmp_path / "data" / "CUB_200_2011" / "images" / "003.Bird_c"
    folder.rename(tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside", target_is_directory=True)
    assert f"{folder}: a link out of the data set" in refused("cub", tmp_path / "data")


def test_a_layout_that_does_not_exist_is_a_config_error() -> None:
    with pytest.raises(ValueError, match="layout"):
        DataSection(layout="cubs", root="/x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"layout": "cub", "train_classes": "a.txt"}, 'expected them with layout = "folder" only'),
        ({"layout": "birds", "image_size": 80, "test_classes": "a.txt"}, 'expected them with layout = "folder" only'),
        ({"layout": "folder", "manifest": "a.csv"}, 'expected it with layout = "manifest"'),
        ({"layout": "sop", "root": ""}, "root is empty"),
        ({"layout": "birds", "image_size": 80, "split_hash": "0" * 64}, "expected it with data on disk only"),
    ],
)
def test_keys_that_nothing_would_read_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSection(**{"root": "/x", **keys})


# ---------------------------------------------------------------------- one layout's own mistakes


@pytest.mark.parametrize(
    ("layout", "which", "old", "new", "message"),
    [
        ("cub", 0, "1 001", "x 001", "id 'x'; expected a positive integer"),
        ("cub", 0, "\n2 001", "\n3 001", "id 3 again (first at "),
        ("cub", 0, "\n2 001", "\n99 001", "image 99 has no line in image_class_labels.txt"),
        ("cub", 1, "24 8", "25 8", "image 24 has no line in image_class_labels.txt"),
        ("cub", 1, "24 8", "24 8\n25 8", "image 25 has no line in images.txt"),
        ("cub", 1, "24 8", "24 9", "class 9 has no line in classes.txt"),
        ("cub", 1, "24 8", "24 eight", "class id 'eight'; expected a positive integer"),
        ("cub", 1, "24 8", "24", "line '24'; expected an id, a space and a value"),
        ("cub", 2, "8 008.Bird_h", "8 007.Bird_g", "class '007.Bird_g' again"),
        ("aircraft", 0, "A300B4", "A300B5", "unknown variant 'A300B5'; expected one of variants.txt; did you mean"),
        ("aircraft", 0, "An-12", "", "unknown variant ''"),
        ("aircraft", 2, "DH-82", "A300B4", "variant 'A300B4' again (first at "),
        ("aircraft", 2, "DH-82", "DH-82\nB-52", "class 'B-52' has no images"),
        ("sop", 0, " class_id", " klass", "no column 'class_id' in the header 'image_id klass super_class_id path'"),
        ("sop", 0, "2 1 2", "2 1", "3 values; expected 4"),
        ("sop", 0, "\n2 1 2", "\n1 1 2", "image_id 1 again (first at "),
        ("sop", 0, "\n2 1 2", "\n2 1e3 2", "class_id '1e3'; expected a positive integer"),
        ("sop", 1, " 7 2 ", " 6 2 ", "class_id 6 is also in Ebay_train.txt"),
        ("inshop", 0, "32\n", "33\n", "32 rows; expected 33, as its first line says"),
        ("inshop", 0, "32\n", "many\n", "number of rows 'many'"),
        ("inshop", 0, "image_name", "name", "no header; expected image_name item_id evaluation_status"),
        ("inshop", 0, "query", "probe", "evaluation_status 'probe'; expected one of train, query, gallery"),
        ("inshop", 0, "id_00000001    train", "id_00000008    train", "is in training and test (first at"),
        ("inshop", 0, "query", "gallery", "no query images"),
        ("inshop", 0, "gallery", "query", "no gallery images"),
        (
            "manifest",
            0,
            "id,label",
            "id,class",
            "no column 'label'; expected the columns path, label, split; found 'id'",
        ),
        ("manifest", 0, "id,label", "split,label", "more than one column 'split'"),
        ("manifest", 0, ",train", ",training", "split 'training'; expected one of train, val, test, gallery"),
        ("manifest", 0, '"kind, 0"', '""', "label ''; expected a text or a whole number"),
        (
            "manifest",
            0,
            '"kind, 0"',
            "kind, 0",
            "5 values; expected 4, as in the header; quote values that hold commas",
        ),
        ("manifest", 0, '"kind, 0"', '"kind, 7"', "disjoint classes"),
        ("manifest", 0, '"kind, 0"', '"kind" 0', "not CSV"),
        ("manifest", 0, '"kind, 0"', '"kind\x1b[31m"', "class name 'kind\\x1b[31m'; expected a printable name"),
        ("manifest", 0, "images/00.png", "images/01.png", "is the same file as some images/01.png"),
        ("manifest", 0, "images/00.png", "images/._00.png", "is no image but macOS metadata"),
        ("manifest", 0, ",test", ",train", "no rows of split 'test'"),
    ],
)
def test_a_wrong_row_is_one_line_with_its_place(
    layout: str, which: int, old: str, new: str, message: str, make_tree: Make, tmp_path: Path
) -> None:
    tree = make_tree(layout, tmp_path)
    path = tree.lists[which]
    content = "\n" + path.read_text()
    if layout == "sop" and old == "2 1 2":
        old = "\n" + old
        new = "\n" + new
    assert old in content, "the test itself is wrong"
    path.write_text(content.replace(old, new)[1:])
    found = refused(layout, tmp_path)
    assert message in found
    assert found.startswith(str(tmp_path))


def test_one_image_classes_of_a_published_list_are_left_out_of_training_only(
    make_tree: Make, classes_of: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    tree = make_tree("sop", tmp_path)
    lines = tree.lists[0].read_text().split("\n")
    tree.lists[0].write_text("\n".join(line for line in lines if "/2_1.JPG" not in line))
    splits = load("sop", tmp_path)
    assert "1 training classes have one image and are left out (00002)" in caplog.text
    assert "00002" not in splits.train.class_names
    assert len(splits.train.class_names) == 5
    assert [name for name in splits.test.class_names if list(tree.test.values()).count(name) == 1] == ["00010"]


def test_a_query_without_gallery_image_stays_and_is_warned_about(
    make_tree: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    tree = make_tree("inshop", tmp_path)
    rows = [line for line in tree.lists[0].read_text().split("\n") if not line.endswith("id_00000007    gallery")]
    tree.lists[0].write_text("\n".join(["30", *rows[1:]]))
    splits = load("inshop", tmp_path)
    assert "1 query items have no gallery image (id_00000007)" in caplog.text
    assert splits.gallery is not None
    assert splits.gallery.class_names == splits.test.class_names
    assert np.bincount(splits.test.labels_I).tolist() == [2, 2, 2]
    assert np.bincount(splits.gallery.labels_I).tolist() == [2, 0, 2]


def test_in_shop_images_may_lie_in_img(make_tree: Make, tmp_path: Path) -> None:
    make_tree("inshop", tmp_path)
    before = load("inshop", tmp_path).split_hash()
    (tmp_path / "Img").mkdir()
    (tmp_path / "img").rename(tmp_path / "Img" / "img")
    (tmp_path / "Eval" / "list_eval_partition.txt").rename(tmp_path / "list_eval_partition.txt")
    assert load("inshop", tmp_path).split_hash() == before


def test_the_aircraft_banner_must_leave_something(make_tree: Make, tmp_path: Path) -> None:
    make_tree("aircraft", tmp_path)
    splits = load("aircraft", tmp_path)
    path = tmp_path / "fgvc-aircraft-2013b" / "data" / splits.train.name(0)
    Image.new("RGB", (60, 20)).save(path)
    with pytest.raises(DataError, match="60 x 20 pixels with a banner of 20"):
        splits.train.image(0)


def test_no_birds_no_splits(make_tree: Make, tmp_path: Path) -> None:
    (tmp_path / "train_mini" / "00001_Animalia_Chordata_Mammalia_Aves_X_Y_z").mkdir(parents=True)
    assert "0 folders of the class Aves; expected train_mini/NNNNN_Kingdom" in refused("inat", tmp_path)
