"""Small made-up trees in the real layouts of the data sets, with their oddities."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saga_dist.data.image_sets import ImageSet

MODES = ("RGB", "L", "CMYK", "P", "RGBA")


def picture(path: Path, number: int, size: tuple[int, int] = (24, 30)) -> None:
    """Writes an image of one grey level, in a mode that depends on the number."""
    level, mode = number % 200 + 20, MODES[number % len(MODES)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "CMYK":
        Image.new(mode, size, (255 - level,) * 3 + (0,)).save(path, format="JPEG", quality=100)
    elif mode in ("RGB", "L"):
        Image.new(mode, size, (level,) * 3 if mode == "RGB" else level).save(path, format="JPEG", quality=100)
    elif mode == "P":
        image = Image.new("P", size, 1)
        image.putpalette([0, 0, 0, level, level, level])
        image.save(path, format="PNG")
    else:
        Image.new("RGBA", size, (level, level, level, 255)).save(path, format="PNG")


def members(images: ImageSet | None) -> dict[str, str]:
    """Class of each image, by the image's name."""
    if images is None:
        return {}
    return {images.name(index): images.class_names[images.labels_I[index]] for index in range(len(images))}


@dataclass
class Tree:
    """A made-up data set."""

    root: Path
    lists: tuple[Path, ...]
    """The text lists, the first one naming image files."""
    train: dict[str, str] = field(default_factory=dict)
    """Image -> class."""
    test: dict[str, str] = field(default_factory=dict)
    gallery: dict[str, str] = field(default_factory=dict)


def write_shuffled(path: Path, lines: Sequence[str], seed: int, head: Sequence[str] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = list(lines)
    random.Random(seed).shuffle(lines)
    path.write_text("\n".join([*head, *lines]) + "\n", "utf-8")


def make_cub(root: Path, *, seed: int = 0, classes: int = 8, images: int = 3) -> Tree:
    folder = root / "CUB_200_2011"
    tree = Tree(root, (folder / "images.txt", folder / "image_class_labels.txt", folder / "classes.txt"))
    paths, labels, names, number = [], [], [], 0
    for class_id in range(1, classes + 1):
        name = f"{class_id:03d}.Bird_{chr(96 + class_id % 26)}"
        names.append(f"{class_id} {name}")
        for image in range(images):
            number += 1
            path = f"{name}/Bird_{image:04d}_{number}.jpg"
            picture(folder / "images" / path, number)
            paths.append(f"{number} {path}")
            labels.append(f"{number} {class_id}")
            (tree.train if class_id <= classes // 2 else tree.test)[f"images/{path}"] = name
    (folder / "images" / "001.Bird_a" / "._Bird_0000_1.jpg").write_bytes(b"\0\5\x16\7")
    for path, lines in zip(tree.lists, (paths, labels, names), strict=True):
        write_shuffled(path, lines, seed)
        seed += 1
    (folder / "train_test_split.txt").write_text("1 0\n")
    return tree


def make_aircraft(root: Path, *, seed: int = 0) -> Tree:
    folder = root / "fgvc-aircraft-2013b" / "data"
    tree = Tree(
        root, tuple(folder / f"{name}.txt" for name in ("images_variant_trainval", "images_variant_test", "variants"))
    )
    variants = ["Boeing 707-320", "737-800", "A300B4", "An-12", "Cessna 172", "F/A-18", "DH-82", "Gulfstream IV"]
    in_order = ["737-800", "A300B4", "An-12", "Boeing 707-320", "Cessna 172", "DH-82", "F/A-18", "Gulfstream IV"]
    lines: dict[str, list[str]] = {"images_variant_trainval.txt": [], "images_variant_test.txt": []}
    for number, variant in enumerate(v for v in in_order for _ in range(3)):
        image_id = f"{34309 + 7 * number:07d}"
        path = folder / "images" / f"{image_id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((30, 24, 3), 10 * number % 250, np.uint8)
        pixels[-20:] = 255  # the copyright line
        Image.fromarray(pixels).save(path, format="PNG")
        lines["images_variant_test.txt" if number % 3 == 0 else "images_variant_trainval.txt"].append(
            f"{image_id} {variant}"
        )
        side = tree.train if variant in in_order[:4] else tree.test
        side[f"images/{image_id}.jpg"] = variant
    for name, rows in lines.items():
        write_shuffled(folder / name, rows, seed)
    write_shuffled(folder / "variants.txt", variants, seed)
    return tree


def make_sop(root: Path, *, seed: int = 0) -> Tree:
    folder = root / "Stanford_Online_Products"
    tree = Tree(root, (folder / "Ebay_train.txt", folder / "Ebay_test.txt"))
    number = 0
    for side, path, ids in ((tree.train, tree.lists[0], range(1, 7)), (tree.test, tree.lists[1], range(7, 11))):
        rows = []
        for class_id in ids:
            kind = ("bicycle", "chair")[class_id % 2]
            for image in range(1 if class_id == 10 else 2 + class_id % 2):
                number += 1
                name = f"{kind}_final/{class_id}_{image}.JPG"
                picture(folder / name, number)
                rows.append(f"{number} {class_id} {class_id % 2 + 1} {name}")
                side[name] = f"{class_id:05d}"
        write_shuffled(path, rows, seed, ["image_id class_id super_class_id path"])
    return tree


def make_inshop(root: Path, *, seed: int = 0) -> Tree:
    tree = Tree(root, (root / "Eval" / "list_eval_partition.txt",))
    rows, number = [], 0
    for item in range(1, 9):
        name = f"id_{item:08d}"
        for image in range(4):
            number += 1
            path = f"img/WOMEN/Jackets_Coats/{name}/{image:02d}_1_front.jpg"
            picture(root / path, number)
            status = "train" if item <= 5 else "query" if image < 2 else "gallery"
            {"train": tree.train, "query": tree.test, "gallery": tree.gallery}[status][path] = name
            rows.append(f"{path}    {name}    {status}")
    write_shuffled(tree.lists[0], rows, seed, [str(len(rows)), "image_name item_id evaluation_status"])
    return tree


def make_manifest(root: Path, *, seed: int = 0) -> Tree:
    tree = Tree(root, (root / "manifest.csv",))
    rows = []
    for number in range(24):
        label, side = f"kind, {number // 3}", ("train", "test")[number >= 12]
        path = f"some images/{number:02d}.png"
        picture(root / path, number)
        rows.append(f'{number},"{label}",{path},{side}')
        (tree.train if side == "train" else tree.test)[path] = label
    write_shuffled(tree.lists[0], rows, seed, ["id,label,path,split"])
    return tree


def make_inat(root: Path, *, seed: int = 0) -> Tree:
    tree = Tree(root, ())
    lineage = "Animalia_Chordata_Aves_Passeriformes_Aves_Genus"
    numbers = list(range(3111, 3119))
    random.Random(seed).shuffle(numbers)
    for number in numbers:
        name = f"{number:05d}_{lineage}_species-{number}"
        for image in range(3):
            picture(root / "train_mini" / name / f"{image}a{number}.jpg", number + image)
            side = tree.train if number < 3115 else tree.test
            side[f"{name}/{image}a{number}.jpg"] = name
    # The fourth piece decides, wherever else the word stands.
    for other in ("00001_Animalia_Chordata_Mammalia_Aves_X_Y_z", "05000_Aves_Plantae_Rosa", "Aves"):
        picture(root / "train_mini" / other / "0.jpg", 1)
    (root / "train_mini" / f"{numbers[0]:05d}_{lineage}_species-{numbers[0]}" / "._0.jpg").write_bytes(b"\0")
    return tree


MAKERS: dict[str, Callable[..., Tree]] = {
    "cub": make_cub,
    "aircraft": make_aircraft,
    "sop": make_sop,
    "inshop": make_inshop,
    "manifest": make_manifest,
    "inat": make_inat,
}


@pytest.fixture
def make_tree() -> Callable[..., Tree]:
    """Makes a tree: ``make_tree(layout, root, **options)``."""
    return lambda layout, root, **options: MAKERS[layout](root, **options)


@pytest.fixture
def classes_of() -> Callable[[ImageSet | None], dict[str, str]]:
    """Class of each image of a split, by the image's name."""
    return members
