"""Wrong data sets for the table of bad inputs, and what is done with them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bad_inputs.row import Workspace
from PIL import Image

from saga_dist.config import DataSection
from saga_dist.retrieval.embed import embed_folder
from saga_dist.retrieval.identity import ModelIdentity
from saga_dist.runtime.build import build_splits

FIRST = "class_00"
"""Name of the first class."""


class Encoder:
    """An encoder whose embedding is the mean colour."""

    image_size = 8

    def encode(self, images: Any) -> np.ndarray:
        """Returns [I, 3]."""
        means_IC = np.stack([image.reshape(-1, 3).mean(0) + 1 for image in images])
        return (means_IC / np.linalg.norm(means_IC, axis=1, keepdims=True)).astype(np.float32)


def embed(workspace: Workspace) -> object:
    """Embeds the folder ``data``, with at most half of the images unusable."""
    identity = ModelIdentity("a" * 64, "qwen3_vl", 8, {}, "/models/a")
    out = workspace.folder / "out.arrow"
    return embed_folder(Encoder(), identity, workspace.folder / "data", out, max_bad_share=0.5, jobs=1)


def splits(workspace: Workspace) -> object:
    """Finds the splits of the folder ``data`` as a training does."""
    return build_splits(DataSection(root=str(workspace.folder / "data"), val_fraction=0.0), seed=0).names


def folders(change: Callable[[Path], Any], **options: int) -> Callable[[Workspace], Any]:
    """Writes class folders of images below ``data`` and changes them."""
    return lambda workspace: change(workspace.image_folder(**options))


def move_into(root: Path, **parts: range) -> None:
    """Moves class folders into folders of splits."""
    for split, numbers in parts.items():
        for number in numbers:
            (root / split).mkdir(exist_ok=True)
            (root / f"class_{number:02d}").rename(root / split / f"class_{number:02d}")


def split_twice(root: Path) -> None:
    """Makes folders train and test with the same classes."""
    move_into(root, train=range(8))
    shutil.copytree(root / "train", root / "test")


def one_image(root: Path) -> Path:
    """Returns the first image of the first class."""
    return min((root / FIRST).iterdir())


def write(root: Path, *names: str, content: bytes = b"x") -> None:
    """Writes files of a content into the first class folder."""
    for name in names:
        path = root / FIRST / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def nest(root: Path) -> None:
    """Moves all images of the first class one folder deeper."""
    (root / FIRST / "more").mkdir()
    for path in (root / FIRST).glob("*.png"):
        path.rename(root / FIRST / "more" / path.name)


def splits_without_classes(root: Path) -> None:
    """Makes folders train and test of images without a class."""
    for number, name in enumerate(("train", "test")):
        (root / f"class_{number:02d}").rename(root / name)


def without_classes(workspace: Workspace) -> None:
    """Writes images into the folder ``data`` itself."""
    (workspace.image_folder("other", classes=1) / FIRST).rename(workspace.folder / "data")


def deny(workspace: Workspace) -> None:
    """Makes the folder of a class unreadable, also for the superuser."""
    workspace.image_folder()
    scandir: Any = os.scandir

    def denied(folder: Path) -> Any:
        if Path(folder).name == "class_03":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    workspace.patch.setattr(os, "scandir", denied)


def deny_lists(workspace: Workspace) -> None:
    """Makes every file below the folder of the data unreadable, as a folder without the right to enter it does."""
    workspace.image_folder()

    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    workspace.patch.setattr(Path, "exists", denied)


def manifest(workspace: Workspace, *extra: str) -> None:
    """Writes a manifest of the images below ``data`` with further rows."""
    root = workspace.image_folder()
    rows = [
        f"{path.relative_to(root)},{path.parent.name},{'train' if path.parent.name < 'class_04' else 'test'}"
        for path in sorted(root.glob("*/*.png"))
    ]
    (root / "manifest.csv").write_text("\n".join(["path,label,split", *rows, *extra]) + "\n")


def resave(root: Path) -> None:
    """Copies an image of a training class to a test class, in another compression."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
    image.save(root / FIRST / "photo.png")
    image.save(root / "class_07" / "photo.jpg", quality=95)
