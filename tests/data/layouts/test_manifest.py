"""A user's own list, in both formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saga_dist.data.layouts.division import SplitOptions
from saga_dist.data.layouts.manifest import load_manifest
from saga_dist.errors import DataError

OPTIONS = SplitOptions(val_fraction=0.0, image_size=16)
Make = Callable[..., Any]


def refused(root: Path, manifest: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        load_manifest(root, OPTIONS, manifest=manifest)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def columns_of(tree: Any) -> dict[str, list[Any]]:
    rows = [(path, label, "train") for path, label in tree.train.items()]
    rows += [(path, label, "test") for path, label in tree.test.items()]
    paths, labels, splits = (list(column) for column in zip(*rows, strict=True))
    return {"split": splits, "more": list(range(len(rows))), "label": labels, "path": paths}


def test_parquet_and_csv_are_one(make_tree: Make, tmp_path: Path) -> None:
    tree = make_tree("manifest", tmp_path)
    want = load_manifest(tmp_path, OPTIONS).split_hash()
    elsewhere = write_parquet(tmp_path.parent / f"{tmp_path.name}.parquet", columns_of(tree))
    assert load_manifest(tmp_path, OPTIONS, manifest=elsewhere).split_hash() == want
    assert load_manifest(tmp_path, OPTIONS, manifest=tree.lists[0]).split_hash() == want


def test_whole_numbers_are_labels_and_numbers_with_a_point_are_not(make_tree: Make, tmp_path: Path) -> None:
    columns = columns_of(make_tree("manifest", tmp_path))
    columns["label"] = [int(label.split()[-1]) for label in columns["label"]]
    path = write_parquet(tmp_path / "a.parquet", columns)
    assert load_manifest(tmp_path, OPTIONS, manifest=path).train.class_names == ("0", "1", "2", "3")
    write_parquet(path, columns | {"label": [float(label) for label in columns["label"]]})
    assert f"{path}:1: label 0.0; expected a text or a whole number" in refused(tmp_path, path)
    write_parquet(path, columns | {"label": [None if row == 4 else str(row) for row in range(24)]})
    assert f"{path}:5: label None; expected a text or a whole number" in refused(tmp_path, path)


def test_validation_and_gallery_rows_are_taken_as_they_are(
    make_tree: Make, classes_of: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    columns = columns_of(make_tree("manifest", tmp_path))
    columns["split"] = ["val" if label == "kind, 1" else "train" for label in columns["label"][:12]]
    columns["split"] += ["test", "gallery", "gallery"] * 4
    path = write_parquet(tmp_path / "a.parquet", columns)
    splits = load_manifest(tmp_path, SplitOptions(val_fraction=0.5, image_size=16), manifest=path)
    for name, images in (("val", splits.val), ("test", splits.test), ("gallery", splits.gallery)):
        rows = [place for place, split in enumerate(columns["split"]) if split == name]
        assert classes_of(images) == {columns["path"][row]: columns["label"][row] for row in rows}
    assert splits.train.class_names == ("kind, 0", "kind, 2", "kind, 3")
    assert splits.gallery is not None
    assert splits.gallery.class_names == splits.test.class_names


def test_a_damaged_or_odd_manifest_is_one_line(make_tree: Make, tmp_path: Path) -> None:
    tree = make_tree("manifest", tmp_path)
    path = write_parquet(tmp_path / "a.parquet", columns_of(tree))
    whole = path.read_bytes()
    for damage in (b"", b"PAR1", whole[: len(whole) // 2], whole[:-9] + bytes(9), b"path,label,split\n"):
        path.write_bytes(damage)
        assert f"{path}: not a readable Parquet file (" in refused(tmp_path, path)
    write_parquet(path, {"path": ["a"], "split": ["train"]})
    assert f"{path}:1: no column 'label'" in refused(tmp_path, path)
    assert "a manifest ending in '.txt'; expected .csv or .parquet" in refused(tmp_path, tmp_path / "a.txt")
    assert "cannot read the list (No such file" in refused(tmp_path, tmp_path / "gone.csv")
    tree.lists[0].unlink()
    assert "no manifest; expected one of manifest.csv, manifest.parquet; set data.manifest" in refused(tmp_path)
    for name in ("manifest.csv", "manifest.parquet"):
        (tmp_path / name).touch()
    assert "both manifests are there; expected one of" in refused(tmp_path)


def test_a_partitioned_folder_name_adds_no_column(make_tree: Make, tmp_path: Path) -> None:
    columns = columns_of(make_tree("manifest", tmp_path))
    del columns["split"]
    folder = tmp_path / "split=train"
    folder.mkdir()
    assert "no column 'split'" in refused(tmp_path, write_parquet(folder / "a.parquet", columns))


def test_quoted_line_ends_keep_the_place_of_later_rows(make_tree: Make, tmp_path: Path) -> None:
    tree = make_tree("manifest", tmp_path)
    tree.lists[0].write_text('path,label,split,note\na.png,x,train,"two\nlines"\nb.png,,train,\n')
    assert f"{tree.lists[0]}:4: label ''" in refused(tmp_path)
