"""Cars-196 in both forms of its annotations; the first half of the classes is for training, the second for test.

Form A has ``cars_annos.mat`` and ``car_ims/``. Form B has ``cars_train/``, ``cars_test/`` and ``devkit/`` with one list
for each; the test list of the devkit has no labels, the labelled one is a separate download.
"""

from __future__ import annotations

from pathlib import Path

from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.division import PublishedSplit, SplitOptions, halves, make_splits
from saga_dist.data.layouts.listing import ClassFiles, find_root
from saga_dist.data.layouts.matlab import read_annotations
from saga_dist.errors import DataError

PUBLISHED = PublishedSplit("Cars-196", train_classes=98, test_classes=98, train_images=8054, test_images=8131)
"""Size of the published split."""
FORM_A = "cars_annos.mat"
"""Annotations of form A."""
FORM_B = (("cars_train", "cars_train_annos.mat"), ("cars_test", "cars_test_annos_withlabels.mat"))
"""Image folders of form B, each with its annotations."""
UNLABELLED = "cars_test_annos.mat"
"""Test annotations without labels, which cannot be used."""
NAMES = "cars_meta.mat"
"""File with the class names of form B."""
LIST_FOLDERS = ("devkit", ".")
"""Folders, relative to the root, that may hold the annotations of form B."""


def load_cars(root: str | Path, options: SplitOptions | None = None) -> Splits:
    """Returns the splits of Cars-196, classes in the order of their ids.

    The test flags of the annotations are ignored, because they divide images and not classes.

    Args:
        root: folder with ``cars_annos.mat`` or with ``devkit``.
        options: validation classes and image size.

    Raises:
        DataError: the folder has neither form, or only the test list without labels; or an annotation or an image file
            is missing or wrong.
    """
    folder = find_root(root)
    if (folder / FORM_A).exists():
        rows, names = _form_a(folder)
    else:
        rows, names = _form_b(folder)
    if names and max(class_id for class_id, *_ in rows) > len(names):
        class_id, _, _, where = max(rows)
        raise DataError(f"class {class_id}", where=where, expected=f"at most {len(names)}, the class names")
    files = ClassFiles(folder)
    for class_id, image_folder, name, where in sorted(rows):
        class_name = f"{class_id:03d} {names[class_id - 1]}" if names else f"{class_id:03d}"
        files.add(class_name, name, where, folder=image_folder)
    return make_splits(files, *halves(files.classes), options or SplitOptions(), published=PUBLISHED)


_Row = tuple[int, str, str, str]  # class id, image folder, path in it, file and row of the annotation


def _form_a(folder: Path) -> tuple[list[_Row], tuple[str, ...]]:
    return _read(folder / FORM_A, "relative_im_path", ".")


def _form_b(folder: Path) -> tuple[list[_Row], tuple[str, ...]]:
    rows: list[_Row] = []
    for image_folder, list_name in FORM_B:
        path = _find(folder, list_name)
        if path is None:
            unlabelled = _find(folder, UNLABELLED)
            if unlabelled is not None and list_name != FORM_B[0][1]:
                raise DataError(
                    "the devkit's test list has no labels",
                    where=str(unlabelled),
                    expected=f"{list_name} beside it",
                    fix="add the labelled list from the data set's page",
                )
            raise DataError(
                f"neither {FORM_A} nor {list_name}", where=str(folder), expected="Cars-196", fix="check data.root"
            )
        rows += _read(path, "fname", image_folder)[0]
    meta = _find(folder, NAMES)
    return rows, () if meta is None else read_annotations(meta, ()).class_names


def _find(folder: Path, name: str) -> Path | None:
    return next((folder / place / name for place in LIST_FOLDERS if (folder / place / name).exists()), None)


def _read(path: Path, name_field: str, image_folder: str) -> tuple[list[_Row], tuple[str, ...]]:
    """Returns the rows and the class names of an annotation file.

    Args:
        path: the annotation file.
        name_field: field with the path of the image.
        image_folder: folder below the root that the paths are relative to.
    """
    found = read_annotations(path, (name_field, "class"))
    if not found.fields:
        raise DataError("no struct 'annotations'", where=str(path), fix="restore the file from the original")
    for field in (name_field, "class"):
        if field not in found.fields:
            fix = "use the labelled list from the data set's page" if field == "class" else "check data.root"
            raise DataError(
                f"no field {field!r}", where=str(path), expected=f"it beside {', '.join(found.fields)}", fix=fix
            )
    rows: list[_Row] = []
    pairs = zip(found.columns[name_field], found.columns["class"], strict=True)
    for number, (name, label) in enumerate(pairs, start=1):
        where = f"{path}:{number}"
        if not isinstance(name, str):
            raise DataError(f"{name_field} {name!r}", where=where, expected="a file name", fix="restore the file")
        if isinstance(label, str) or label is None or label not in range(1, 1000):
            raise DataError(f"class {label!r}", where=where, expected="1 to 196", fix="restore the file")
        rows.append((int(label), image_folder, name, where))
    if not rows:
        raise DataError("no annotations", where=str(path), fix="restore the file from the original")
    return rows, found.class_names
