"""The manifest layout: a user's list of images, CSV or Parquet with the columns path, label and split."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.division import SplitOptions, make_splits
from saga_dist.data.layouts.listing import ClassFiles, find_root, read_list_bytes
from saga_dist.errors import DataError

COLUMNS = ("path", "label", "split")
"""Required columns."""
SPLITS = ("train", "val", "test", "gallery")
"""Values of the column ``split``."""
DEFAULT_NAMES = ("manifest.csv", "manifest.parquet")
"""File names in the root that are used when no manifest is given."""


def load_manifest(
    root: str | Path, options: SplitOptions | None = None, *, manifest: str | Path | None = None
) -> Splits:
    """Returns the splits that a manifest lists; further columns are ignored.

    The column ``split`` is train, val, test or gallery. Without val rows, validation classes are drawn from the
    training classes. With gallery rows, the test images are queries that search the gallery instead of each other.

    Args:
        root: folder that the paths are relative to; they may not leave it.
        options: validation classes and image size.
        manifest: a ``.csv`` file (UTF-8; a byte order mark is allowed, since Excel writes one) or a ``.parquet`` file;
            None for ``manifest.csv`` or ``manifest.parquet`` in the root.

    Raises:
        DataError: a column is missing, a row is wrong, or a class is in two of training, validation and test.
    """
    folder = find_root(root)
    path = Path(manifest) if manifest else _default(folder)
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(f"a manifest ending in {path.suffix!r}", where=str(path), expected=".csv or .parquet")
    rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
    files = ClassFiles(folder)
    gallery = ClassFiles(folder, beside=files)
    first_of: dict[str, tuple[str, str]] = {}
    splits = set()
    for number, (listed, label, split) in rows:
        where = f"{path}:{number}"
        if split not in SPLITS:
            raise DataError(f"split {split!r}", where=where, expected=f"one of {', '.join(SPLITS)}", fix="correct it")
        side = "test" if split == "gallery" else split
        first_side, first = first_of.setdefault(label, (side, where))
        if first_side != side:
            raise DataError(
                f"class {label!r} is also in {first_side} ({first})", where=where, expected="disjoint classes"
            )
        splits.add(split)
        (gallery if split == "gallery" else files).add(label, listed, where)
    for needed in ("train", "test"):
        if needed not in splits:
            raise DataError(f"no rows of split {needed!r}", where=str(path), fix="add some")
    train, val, test = (sorted(name for name, (side, _) in first_of.items() if side == wanted) for wanted in SPLITS[:3])
    return make_splits(
        files,
        train,
        test,
        options or SplitOptions(),
        val=val or None,
        gallery=gallery if "gallery" in splits else None,
    )


def _default(folder: Path) -> Path:
    found = [folder / name for name in DEFAULT_NAMES if (folder / name).exists()]
    if len(found) != 1:
        raise DataError(
            "both manifests are there" if found else "no manifest",
            where=str(folder),
            expected=f"one of {', '.join(DEFAULT_NAMES)}",
            fix="set data.manifest",
        )
    return found[0]


_Row = tuple[str, str, str]


def _csv_rows(path: Path) -> Iterator[tuple[int, _Row]]:
    """Yields the number and the values of every row; the number is that of the row's last line in the file."""
    content = read_list_bytes(path).removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError("not UTF-8 text", where=f"{path}:{number}", fix="save the manifest as UTF-8") from error
        if "\0" in text:
            raise DataError("a NUL character", where=f"{path}:{number}", fix="remove it")
    reader = csv.reader(io.StringIO(content.decode("utf-8"), newline=""), strict=True)
    places: list[int] = []
    width = 0
    try:
        for values in reader:
            if not values:
                continue
            if not places:
                places, width = _places([value.strip() for value in values], path), len(values)
                continue
            if len(values) != width:
                raise DataError(
                    f"{len(values)} values",
                    where=f"{path}:{reader.line_num}",
                    expected=f"{width}, as in the header",
                    fix="quote values that hold commas",
                )
            yield reader.line_num, _row([values[place] for place in places], f"{path}:{reader.line_num}")
    except csv.Error as error:
        raise DataError(f"not CSV ({error})", where=f"{path}:{reader.line_num}", fix="correct the row") from error
    if not places:
        raise DataError("the manifest is empty", where=str(path), expected=f"a header {','.join(COLUMNS)} and rows")


def _parquet_rows(path: Path) -> Iterator[tuple[int, _Row]]:
    """Yields the number, from 1, and the values of every row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = read_list_bytes(path)
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        _places(file.schema_arrow.names, path)
        number = 0
        for batch in file.iter_batches(batch_size=65536, columns=list(COLUMNS)):
            for values in zip(*(batch.column(name).to_pylist() for name in COLUMNS), strict=True):
                number += 1
                yield number, _row(values, f"{path}:{number}")
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"not a readable Parquet file ({reason})", where=str(path), fix="write it again") from error


def _places(names: Sequence[str], path: Path) -> list[int]:
    """Returns the index of each of ``COLUMNS`` among the names of the manifest's columns."""
    for column in COLUMNS:
        if names.count(column) != 1:
            raise DataError(
                f"{'no' if column not in names else 'more than one'} column {column!r}",
                where=f"{path}:1",
                expected=f"the columns {', '.join(COLUMNS)}",
                fix=f"found {', '.join(map(repr, names[:8]))}",
            )
    return [names.index(column) for column in COLUMNS]


def _row(values: Sequence[object], where: str) -> _Row:
    texts = []
    for column, value in zip(COLUMNS, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise DataError(f"{column} {value!r}", where=where, expected="a text or a whole number", fix="fill it in")
        texts.append(str(value).strip())
    return texts[0], texts[1], texts[2]
