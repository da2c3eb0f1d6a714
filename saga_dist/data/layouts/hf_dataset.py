"""The layout of a data set that Hugging Face ``datasets`` saved with ``save_to_disk``: Arrow files with images.

The files are read without that package: an image is a run of bytes of an Arrow file, which is mapped once to find it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.division import SplitOptions
from saga_dist.data.layouts.listing import find_root
from saga_dist.data.layouts.packed import ALL, PackedFiles
from saga_dist.data.layouts.split_folders import SPLIT_OF
from saga_dist.data.packed_images import Place
from saga_dist.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_FIELD, LABEL_FIELD = "image", "label"
"""Columns of the images and of the classes, unless the configuration names others."""
DICTIONARY, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
MARKERS = (DICTIONARY, STATE)
"""Files of which a saved data set has one in its folder: with splits, or without."""
_FIX = "save it again with `dataset.save_to_disk`"


def load_hf_dataset(
    root: str | Path,
    options: SplitOptions | None = None,
    *,
    image_field: str | None = None,
    label_field: str | None = None,
) -> Splits:
    """Returns the splits of a saved ``DatasetDict``, or halves of the sorted classes of a saved ``Dataset``.

    A ``DatasetDict`` needs the splits train and test, and may have val or validation; no class may be in two of them.

    Args:
        root: folder that ``save_to_disk`` wrote.
        options: validation classes and image size.
        image_field: column of the images; None for ``image``.
        label_field: column of the classes, names or numbers of a ``ClassLabel``; None for ``label``.

    Raises:
        DataError: the folder or a file in it has another form, a column is missing, a row has no image or class, a
            class is in two splits, or there are too few classes or images.
    """
    folder = find_root(root)
    files = PackedFiles(folder)
    for part, split in _parts(folder).items():
        _add_rows(files, part, split, image_field or IMAGE_FIELD, label_field or LABEL_FIELD)
    return files.divide(options or SplitOptions())


def _parts(folder: Path) -> dict[str, str]:
    """Returns the folder of each part, relative to the root, with its split."""
    if (folder / STATE).exists():
        return {"": ALL}
    names = _json(folder / DICTIONARY).get("splits")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError("lists no splits", where=str(folder / DICTIONARY), expected=f"a saved DatasetDict, or {STATE}")
    unknown = [name for name in names if name not in SPLIT_OF]
    if unknown:
        raise DataError(
            f"split {unknown[0]!r}",
            where=str(folder / DICTIONARY),
            expected=f"splits named {', '.join(SPLIT_OF)}",
            fix="rename it, or set data.root to the folder of one split, to divide its classes",
        )
    return {name: SPLIT_OF[name] for name in names}


def _add_rows(files: PackedFiles, part: str, split: str, image_field: str, label_field: str) -> None:
    """Adds all rows of one saved ``Dataset``."""
    folder = files.root / part
    state, features = _json(folder / STATE), _json(folder / INFO).get("features") or {}
    if state.get("_indices_data_files"):
        raise DataError("has a list of chosen rows", where=str(folder), fix="dataset.flatten_indices(), then " + _FIX)
    names = _class_names(features, label_field, where=str(folder / INFO))
    for entry in state.get("_data_files") or []:
        file = (PurePosixPath(part) / str(entry.get("filename"))).as_posix()
        if ".." in PurePosixPath(file).parts:
            raise DataError(f"names the file {file!r}", where=str(folder / STATE), expected="a file beside it")
        for row, place, name, label in _rows(files.root, file, image_field, label_field):
            shown = f"{file}/{row}{PurePosixPath(name).suffix}"
            if place is None or label is None:
                missing = "image" if place is None else "class"
                raise DataError(f"row {row} has no {missing}", where=str(files.root / file), fix=f"remove it; {_FIX}")
            files.add_packed(_class_name(label, names, shown), shown, place, split=split)


def _class_names(features: Mapping[str, Any], label_field: str, *, where: str) -> list[str] | None:
    """Returns the names of a ``ClassLabel``'s numbers; None for a column of another type."""
    if label_field not in features:
        raise DataError(
            f"no column {label_field!r}",
            where=where,
            expected=f"one of {', '.join(map(repr, features)) or 'its columns'}",
            fix="set data.label_field",
        )
    feature = features[label_field]
    names = feature.get("names") if isinstance(feature, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else None


def _class_name(label: object, names: list[str] | None, where: str) -> str:
    if names is None:
        return str(label)
    if not isinstance(label, int) or not 0 <= label < len(names):
        raise DataError(f"class {label!r}", where=where, expected=f"0 to {len(names) - 1}", fix=_FIX)
    return names[label]


def _rows(root: Path, file: str, image_field: str, label_field: str) -> Iterator[tuple[int, Place | None, str, object]]:
    """Yields number, bytes of the image, its former file name and its class for every row of an Arrow file."""
    import pyarrow as pa

    path = root / file
    try:
        with pa.memory_map(str(path)) as mapped:
            whole = mapped.read_buffer()
            row = 0
            for batch in pa.ipc.open_stream(whole):
                images, labels = (_column(batch, field, path) for field in (image_field, label_field))
                _refuse_other_types(images, path)
                places = _places(images, file, whole)
                names = images.field("path").to_pylist()
                for place, name, label in zip(places, names, labels.to_pylist(), strict=True):
                    yield row, place, name or "", label
                    row += 1
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"not a readable Arrow file ({reason})", where=str(path), fix=_FIX) from error


def _column(batch: pa.RecordBatch, field: str, path: Path) -> pa.Array:
    if field not in batch.schema.names:
        raise DataError(
            f"no column {field!r}",
            where=str(path),
            expected=f"one of {', '.join(map(repr, batch.schema.names))}",
            fix="set data.image_field and data.label_field",
        )
    return batch.column(field)


def _refuse_other_types(images: pa.Array, path: Path) -> None:
    """Checks that a column has the type of ``datasets.Image``: bytes and file name.

    Raises:
        DataError: it has another type.
    """
    import pyarrow as pa

    if not pa.types.is_struct(images.type) or {"bytes", "path"} - {field.name for field in images.type}:
        raise DataError(
            f"a column of {images.type}",
            where=str(path),
            expected="images of datasets.Image",
            fix="set data.image_field",
        )


def _places(images: pa.Array, file: str, whole: pa.Buffer) -> Iterator[Place | None]:
    """Yields the bytes of each image of a column within its file; None for a row without bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    content = images.field("bytes").cast(pa.large_binary())
    data = content.buffers()[2]
    if data is None:
        yield from (None for _ in range(len(content)))
        return
    start = data.address - whole.address
    if not 0 <= start <= whole.size - data.size:
        raise DataError("its images are compressed", where=file, expected="Arrow without compression", fix=_FIX)
    offsets = memoryview(content.buffers()[1]).cast("q")[content.offset : content.offset + len(content) + 1]
    for index, is_there in enumerate(pc.and_(images.is_valid(), content.is_valid()).to_pylist()):
        size = offsets[index + 1] - offsets[index]
        yield Place(file, start + offsets[index], size) if is_there and size else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot be read ({reason})", where=str(path), expected="a saved data set", fix=_FIX) from error
    if not isinstance(content, dict):
        raise DataError(f"holds a {type(content).__name__}", where=str(path), expected="a JSON object", fix=_FIX)
    return content
