"""Cars-196 in both forms, with annotation files as MATLAB writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from saga_dist.data.layouts import matlab
from saga_dist.data.layouts.cars import load_cars
from saga_dist.data.layouts.division import SplitOptions
from saga_dist.data.layouts.matlab import read_annotations
from saga_dist.errors import DataError

NAMES = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "BMW  M3\n2012", "Fiat 500", "Audi", "Volvo"]
OPTIONS = SplitOptions(val_fraction=0.0, image_size=16)
Rows = Sequence[tuple[str, int]]


def write_mat(path: Path, rows: Rows, fields: Sequence[str], names: Sequence[str] = ()) -> None:
    """A struct array ``annotations`` with the given fields in the given order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    annotations = np.zeros((1, len(rows)), [(field, object) for field in fields])
    for place, (name, label) in enumerate(rows):
        for field in fields:
            value: object = name if field in ("fname", "relative_im_path") else label if field == "class" else 7
            annotations[0, place][field] = value if isinstance(value, str) else np.uint8([[value]])
    content: dict[str, Any] = {"annotations": annotations}
    if names:
        content["class_names"] = np.array([list(names)], object)
    savemat(path, content)


def write_image(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (20, 16), level).save(path, format="JPEG", quality=100)


def form_a(root: Path) -> dict[str, int]:
    rows = {f"car_ims/{number:06d}.jpg": number % 6 + 1 for number in range(1, 19)}
    for number, name in enumerate(rows):
        write_image(root / name, number * 10)
    shuffled = sorted(rows.items(), key=lambda row: hash(row[0][::-1]) % 97)
    fields = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    write_mat(root / "cars_annos.mat", shuffled, fields, NAMES)
    return rows


FIELDS_B = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")


def form_b(root: Path, *, labelled: str = "devkit/cars_test_annos_withlabels.mat") -> dict[str, int]:
    rows: dict[str, int] = {}
    for folder, list_name in (("cars_train", "devkit/cars_train_annos.mat"), ("cars_test", labelled)):
        part = {f"{number:05d}.jpg": number % 6 + 1 for number in range(1, 13)}  # both folders number from 1
        for name in part:
            write_image(root / folder / name, 100)
        write_mat(root / list_name, list(part.items()), FIELDS_B if folder == "cars_train" else FIELDS_B[::-1])
        rows |= {f"{folder}/{name}": label for name, label in part.items()}
    write_mat(root / "devkit" / "cars_test_annos.mat", [("00001.jpg", 0)], ("bbox_x1", "fname"))
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array([NAMES], object)})
    return rows


def refused(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_cars(root, OPTIONS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", [form_a, form_b])
def test_both_forms_are_divided_by_class(
    form: Callable[[Path], dict[str, int]], classes_of: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    rows = form(tmp_path)
    splits = load_cars(tmp_path, OPTIONS)
    want = {name: f"{label:03d} {' '.join(NAMES[label - 1].split())}" for name, label in rows.items()}
    assert classes_of(splits.train) == {name: want[name] for name, label in rows.items() if label <= 3}
    assert classes_of(splits.test) == {name: want[name] for name, label in rows.items() if label > 3}
    assert splits.train.class_names[:2] == ("001 AM General Hummer SUV 2000", "002 Ram C/V Cargo Van Minivan 2012")
    assert splits.test.image(0).shape == (16, 16, 3)


def test_class_names_are_optional_and_the_labelled_list_may_lie_beside_the_devkit(tmp_path: Path) -> None:
    form_b(tmp_path, labelled="cars_test_annos_withlabels.mat")
    (tmp_path / "devkit" / "cars_meta.mat").unlink()
    splits = load_cars(tmp_path, OPTIONS)
    assert splits.train.class_names == ("001", "002", "003")
    assert len(splits.train) + len(splits.test) == 24


def test_the_unlabelled_list_of_the_devkit_is_explained(tmp_path: Path) -> None:
    form_b(tmp_path)
    labelled = tmp_path / "devkit" / "cars_test_annos_withlabels.mat"
    labelled.unlink()
    message = refused(tmp_path)
    assert "devkit/cars_test_annos.mat: the devkit's test list has no labels" in message
    assert "expected cars_test_annos_withlabels.mat beside it; add the labelled list" in message
    (tmp_path / "devkit" / "cars_test_annos.mat").rename(labelled)  # renaming does not help
    message = refused(tmp_path)
    assert "withlabels.mat: no field 'class'; expected it beside bbox_x1, fname; use the labelled list" in message


def test_neither_form_is_named(tmp_path: Path) -> None:
    assert "neither cars_annos.mat nor cars_train_annos.mat; expected Cars-196" in refused(tmp_path)


@pytest.mark.integration
def test_damaged_annotations_are_one_line(tmp_path: Path) -> None:
    form_a(tmp_path)
    path = tmp_path / "cars_annos.mat"
    whole = path.read_bytes()
    for damage in (b"", b"<html>404</html>" * 40, whole[:100], whole[:200], whole[: len(whole) // 2]):
        path.write_bytes(damage)
        assert f"{path}: not a MATLAB 5 file (" in refused(tmp_path)
    # MATLAB 7.3 writes HDF5, with the version in the same header.
    path.write_bytes(whole[:124] + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" + bytes(600))
    assert "not a MATLAB 5 file (" in refused(tmp_path)
    savemat(path, {"annotations": np.zeros(3)})
    assert f"{path}: no struct 'annotations'" in refused(tmp_path)
    write_mat(path, [], ("relative_im_path", "class"))
    assert refused(tmp_path).startswith(f"{path}: no annotations") or "no struct" in refused(tmp_path)


@pytest.mark.integration
def test_flipped_bytes_give_splits_or_one_line_and_never_take_this_process_along(tmp_path: Path) -> None:
    form_a(tmp_path)
    path = tmp_path / "cars_annos.mat"
    whole = path.read_bytes()
    refusals = []
    # The last four of these end SciPy 1.17's process with a segmentation fault.
    for position, change in ((70, 1), (300, 255), (4000, 3), (681, 90), (1841, 44), (1512, 148), (3592, 241)):
        damaged = bytearray(whole)
        damaged[position] ^= change
        path.write_bytes(damaged)
        try:
            load_cars(tmp_path, OPTIONS)
        except DataError as error:
            refusals.append(str(error))
    assert refusals
    assert not any("\n" in message for message in refusals)


def test_a_reader_that_dies_or_hangs_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form_a(tmp_path)
    script = tmp_path / "reader.py"
    monkeypatch.setattr(matlab, "__file__", str(script))
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    assert "not a MATLAB 5 file (the reader died of signal 11)" in refused(tmp_path)
    script.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(matlab, "_DEADLINE_S", 0.2)
    assert "not a MATLAB 5 file (not read after 0.2 s)" in refused(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("car_ims/000001.jpg", 7), "class 7; expected at most 6, the class names"),
        (("car_ims/000001.jpg", 0), "class 0; expected 1 to 196"),
        (("../secret.jpg", 1), "path '../secret.jpg'; expected a path below"),
        (("/etc/passwd", 1), "path '/etc/passwd'; expected a path below"),
        (("car_ims/gone.jpg", 1), "car_ims/gone.jpg is missing"),
        (("car_ims/000002.jpg", 1), "car_ims/000002.jpg is the same file as car_ims/000002.jpg"),
        (("", 1), "expected a file name"),
    ],
)
def test_a_wrong_annotation_is_one_line_with_its_row(row: tuple[str, int], message: str, tmp_path: Path) -> None:
    rows = form_a(tmp_path)
    listed = [row, *list(rows.items())[1:]]
    write_mat(tmp_path / "cars_annos.mat", listed, ("class", "relative_im_path"), NAMES)
    found = refused(tmp_path)
    assert message in found
    assert f"{tmp_path}/cars_annos.mat:" in found


def test_one_annotation_alone_is_read(tmp_path: Path) -> None:
    write_mat(tmp_path / "one.mat", [("a.jpg", 3)], FIELDS_B)
    found = read_annotations(tmp_path / "one.mat", ("class", "fname", "test"))
    assert found.columns == {"class": [3], "fname": ["a.jpg"]}
    assert found.fields == FIELDS_B
    assert found.class_names == ()
