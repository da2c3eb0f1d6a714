"""Tar shards and saved Hugging Face data sets that cannot be trained on."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from pathlib import Path

from bad_inputs.row import BadInput, Workspace
from data.shards import write_shard
from PIL import Image

SHARDS = "data check shards --layout webdataset"
SAVED = "data check saved --layout hf_dataset"
FIXTURES = Path(__file__).resolve().parents[1] / "data" / "hf_dataset"


def picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    return content.getvalue()


def of_classes(*names: str) -> dict[str, bytes]:
    """Returns the members of two samples of each class."""
    return {
        f"{name}{number}.{ending}": content
        for name in names
        for number in range(2)
        for ending, content in (("png", picture()), ("cls", name.encode()))
    }


def without_class(workspace: Workspace) -> None:
    write_shard(workspace.folder / "shards" / "0.tar", {**of_classes("a", "b"), "z.png": picture()})


def compressed(workspace: Workspace) -> None:
    path = workspace.folder / "shards" / "0.tar"
    write_shard(path, of_classes("a", "b", "c", "d"))
    path.write_bytes(gzip.compress(path.read_bytes()))


def cut_off(workspace: Workspace) -> None:
    path = workspace.folder / "shards" / "0.tar"
    write_shard(path, of_classes("a", "b", "c", "d"))
    path.write_bytes(path.read_bytes()[:600])


def half_named(workspace: Workspace) -> None:
    write_shard(workspace.folder / "shards" / "train-0.tar", of_classes("a", "b"))
    write_shard(workspace.folder / "shards" / "more.tar", of_classes("c", "d"))


def class_on_both_sides(workspace: Workspace) -> None:
    write_shard(workspace.folder / "shards" / "train-0.tar", of_classes("a", "b"))
    write_shard(workspace.folder / "shards" / "test-0.tar", of_classes("b", "c"))


def saved(workspace: Workspace, which: str = "whole") -> Path:
    """Copies a data set that ``datasets`` saved."""
    return Path(shutil.copytree(FIXTURES / which, workspace.folder / "saved"))


def indexed(workspace: Workspace) -> None:
    path = saved(workspace) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_indices_data_files": [{"filename": "i.arrow"}]}))


def damaged(workspace: Workspace) -> None:
    (saved(workspace) / "data-00000-of-00002.arrow").write_bytes(b"ARROW?" * 90)


def misnamed_split(workspace: Workspace) -> None:
    (saved(workspace, "splits") / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "holdout"]}))


ROWS = [
    BadInput(
        "a folder without shards",
        "shards",
        SHARDS,
        ("no .tar file", "shards of WebDataset", "check data.root"),
        lambda workspace: (workspace.folder / "shards").mkdir(),
    ),
    BadInput(
        "a sample of a shard without a class",
        "shards",
        SHARDS,
        ("0.tar/z.png", "has no class", "a member ending in cls", "data.label_field"),
        without_class,
    ),
    BadInput(
        "a label that is no JSON",
        "shards",
        f"{SHARDS} --label-field cls:species",
        ("its class cannot be read", "data.label_field"),
        without_class,
    ),
    BadInput(
        "a compressed shard",
        "shards",
        SHARDS,
        ("0.tar", "without compression", "gunzip"),
        compressed,
    ),
    BadInput(
        "a shard that is cut off", "shards", SHARDS, ("0.tar", "unexpected end of data", "copy it again"), cut_off
    ),
    BadInput(
        "a shard whose name says no split beside one whose name does",
        "shards",
        SHARDS,
        ("more.tar", "names no split, as others do", "rename it"),
        half_named,
    ),
    BadInput(
        "a class in training and test shards",
        "classes of two splits",
        SHARDS,
        ("class 'b' is in", "unseen classes", "data.root"),
        class_on_both_sides,
    ),
    BadInput(
        "a saved data set without the column of the classes",
        "saved data set",
        f"{SAVED} --label-field species",
        ("no column 'species'", "'image', 'label'", "set data.label_field"),
        saved,
    ),
    BadInput(
        "a saved data set whose images are in another column",
        "saved data set",
        f"{SAVED} --image-field label",
        ("a column of int64", "images of datasets.Image", "set data.image_field"),
        saved,
    ),
    BadInput(
        "a saved data set with chosen rows",
        "saved data set",
        SAVED,
        ("has a list of chosen rows", "flatten_indices"),
        indexed,
    ),
    BadInput(
        "a saved data set with a damaged file",
        "saved data set",
        SAVED,
        ("data-00000-of-00002.arrow", "not a readable Arrow file", "save_to_disk"),
        damaged,
    ),
    BadInput(
        "a saved data set with a split of another name",
        "saved data set",
        SAVED,
        ("split 'holdout'", "train, val, validation, test", "data.root"),
        misnamed_split,
    ),
    BadInput(
        "fields of shards for a folder of classes",
        "data keys of another layout",
        "train run.toml --run-dir {folder}/run --dry-run data.layout=folder data.root={folder} data.label_field=cls",
        ("image_field or label_field", 'layout = "folder"', "remove them or set data.layout"),
        lambda workspace: workspace.write_config(),
    ),
]
