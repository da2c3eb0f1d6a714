"""The published sizes: checked when all classes are there, a warning when they are not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saga_dist.data.layouts import aircraft, cars, cub, inat, inshop, sop
from saga_dist.data.layouts.division import PublishedSplit, SplitOptions
from saga_dist.errors import DataError


def test_published_sizes_add_up() -> None:
    # Totals as the data sets' own pages give them.
    totals = {
        cub: (200, 11788),
        cars: (196, 16185),
        aircraft: (100, 10000),
        inat: (1486, 74300),
        sop: (22634, 120053),
        inshop: (7982, 52712),
    }
    for module, (classes, images) in totals.items():
        size = module.PUBLISHED
        assert size.train_classes + size.test_classes == classes
        assert size.train_images + size.test_images + size.gallery_images == images


def full_cub(root: Path) -> Path:
    """All 200 classes with as many images as are published; every file is one file on the disk."""
    folder = root / "CUB_200_2011"
    (root / "one.jpg").write_bytes(b"not decoded here")
    per_class = [59] * 64 + [58] * 36 + [59] * 100  # 5,864 in the first hundred
    per_class[100:] = [60] * 24 + [59] * 76  # 5,924 in the second
    images, labels, names, number = [], [], [], 0
    for class_id, count in enumerate(per_class, start=1):
        name = f"{class_id:03d}.Bird"
        (folder / "images" / name).mkdir(parents=True)
        names.append(f"{class_id} {name}")
        for _ in range(count):
            number += 1
            os.link(root / "one.jpg", folder / "images" / name / f"{number}.jpg")
            images.append(f"{number} {name}/{number}.jpg")
            labels.append(f"{number} {class_id}")
    for file, lines in (("images", images), ("image_class_labels", labels), ("classes", names)):
        (folder / f"{file}.txt").write_text("\n".join(lines))
    return folder


def test_a_full_cub_passes_and_one_image_less_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = full_cub(tmp_path)
    caplog.set_level("INFO")
    splits = cub.load_cub(tmp_path)
    assert splits.val is not None
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (5864, 5924)
    assert (len(splits.train.class_names), len(splits.val.class_names), len(splits.test.class_names)) == (80, 20, 100)
    assert "all images of CUB-200-2011" in caplog.text
    for name in ("images", "image_class_labels"):
        path = folder / f"{name}.txt"
        path.write_text("\n".join(path.read_text().split("\n")[1:]))
    with pytest.raises(DataError, match="5,863 training images in all classes of CUB-200-2011; expected 5,864"):
        cub.load_cub(tmp_path)
    shutil.rmtree(folder)


def test_another_number_of_classes_is_a_warning(
    make_tree: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_tree("cub", tmp_path)
    cub.load_cub(tmp_path, SplitOptions(val_fraction=0.0))
    assert "4 training and 4 test classes, not the 100 and 100 of CUB-200-2011: not comparable" in caplog.text


@pytest.mark.parametrize(
    ("published", "message"),
    [
        (PublishedSplit("X", 5, 3, 20, 6, 6), ""),
        (PublishedSplit("X", 5, 3, 21, 6, 6), "20 training images in all classes of X; expected 21"),
        (PublishedSplit("X", 5, 3, 20, 5, 6), "6 test images in all classes of X; expected 5"),
        (PublishedSplit("X", 5, 3, 20, 6, 7), "6 gallery images in all classes of X; expected 7"),
    ],
)
def test_every_part_of_a_full_set_is_compared(
    published: PublishedSplit,
    message: str,
    make_tree: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_tree("inshop", tmp_path)
    monkeypatch.setattr(inshop, "PUBLISHED", published)
    if not message:
        assert len(inshop.load_inshop(tmp_path, SplitOptions(val_fraction=0.0)).train) == 20
        return
    with pytest.raises(DataError, match=message):
        inshop.load_inshop(tmp_path, SplitOptions(val_fraction=0.0))
