"""The layout of WebDataset: tar files whose members share a name up to the first dot, ``0001.jpg`` and ``0001.cls``.

The archives are read in place with the standard library; images are not unpacked.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from saga_dist.data.formats import suffixes
from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.division import SplitOptions
from saga_dist.data.layouts.listing import find_root
from saga_dist.data.layouts.packed import ALL, PackedFiles
from saga_dist.data.layouts.split_folders import SPLIT_OF
from saga_dist.data.left_out import LeftOut
from saga_dist.data.packed_images import Place
from saga_dist.errors import DataError

LABEL_FIELD = "cls"
"""Ending of the member with the class, unless ``data.label_field`` names another."""
MOST_LABEL_BYTES = 1 << 20
_SPLIT = re.compile(rf"({'|'.join(SPLIT_OF)})(?![a-z])", re.IGNORECASE)


class _Sample(NamedTuple):
    """The members of one sample: the image, and the text of its class."""

    name: str
    place: Place
    label: bytes


def load_webdataset(
    root: str | Path,
    options: SplitOptions | None = None,
    *,
    image_field: str | None = None,
    label_field: str | None = None,
) -> Splits:
    """Returns the splits of the ``*.tar`` files in a folder and in its folders.

    The name of an archive, or of its folder, says its split: ``train-000.tar``, ``val/000.tar``, ``test_0.tar``. Where
    no name begins with one of these words, the classes are sorted, numbers by their value; the first half trains.

    Args:
        root: folder of the archives.
        options: validation classes and image size.
        image_field: ending of the members with images; None for every ending of an image format.
        label_field: ending of the member with the class, whose text is the name of the class; ``json:KEY`` for a value
            in a member with JSON. None for ``cls``.

    Raises:
        DataError: there is no archive, one is damaged or compressed, a sample has no class, a class is in two splits,
            or there are too few classes or images.
    """
    folder = find_root(root)
    shards = sorted(path.relative_to(folder).as_posix() for path in folder.glob("**/*.tar"))
    if not shards:
        raise DataError("no .tar file", where=str(folder), expected="shards of WebDataset", fix="check data.root")
    files = PackedFiles(folder)
    split_of = {shard: _split_of(shard) for shard in shards}
    if ALL in split_of.values() and len(set(split_of.values())) > 1:
        nameless = next(shard for shard, split in split_of.items() if split == ALL)
        raise DataError(
            "names no split, as others do",
            where=str(folder / nameless),
            expected="train, val or test at the beginning of every name, or of none",
            fix="rename it",
        )
    ending, _, key = (label_field or LABEL_FIELD).partition(":")
    for shard, split in split_of.items():
        for sample in _samples(folder, shard, image_field, ending, files.left_out):
            label = _label(sample, key, folder)
            files.add_packed(label, sample.name, sample.place, split=split)
    return files.divide(options or SplitOptions())


def _split_of(shard: str) -> str:
    path = PurePosixPath(shard)
    found = _SPLIT.match(path.name) or _SPLIT.match(path.parent.name)
    return SPLIT_OF[found[1].lower()] if found else ALL


def _samples(
    folder: Path, shard: str, image_field: str | None, label_ending: str, left_out: list[LeftOut]
) -> Iterator[_Sample]:
    """Yields the samples of one archive; members of a sample lie one behind the other."""
    path = folder / shard
    try:
        with tarfile.open(path, "r:") as archive:
            present, image, label = "", None, b""
            for member in archive:
                if not member.isreg() or PurePosixPath(member.name).name.startswith("."):
                    continue
                sample, ending = _parts(member.name)
                if sample != present:
                    yield from _finished(shard, present, image, label, left_out)
                    present, image, label = sample, None, b""
                if ending == label_ending:
                    label = _content(archive, member)
                elif ending == image_field if image_field else f".{ending}" in suffixes():
                    image = (member.name, Place(shard, member.offset_data, member.size))
            yield from _finished(shard, present, image, label, left_out)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"cannot be read ({' '.join(str(error).split())})",
            where=str(path),
            expected="a tar file without compression, so that one image can be read without the others",
            fix="unpack .tar.gz with gunzip, or copy it again",
        ) from error


def _finished(
    shard: str, sample: str, image: tuple[str, Place] | None, label: bytes, left_out: list[LeftOut]
) -> Iterator[_Sample]:
    """Yields a sample whose members have been read; one without an image is left out."""
    if image is not None:
        yield _Sample(f"{shard}/{image[0]}", image[1], label)
    elif sample:
        left_out.append(LeftOut(f"{shard}/{sample}", "samples without an image"))


def _parts(name: str) -> tuple[str, str]:
    """Returns the name of the sample that a member belongs to, and the member's ending in lower case."""
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    return (path.parent / stem).as_posix(), ending.lower()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = archive.extractfile(member)
    return b"" if opened is None else opened.read(MOST_LABEL_BYTES)


def _label(sample: _Sample, key: str, folder: Path) -> str:
    """Returns the class of a sample: the text of its label, or the value of a key of its JSON."""
    where = str(folder / sample.name)
    try:
        label = str(json.loads(sample.label)[key]) if key and sample.label else sample.label.decode("utf-8").strip()
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"its class cannot be read ({error})", where=where, fix="set data.label_field") from error
    if not label:
        raise DataError(
            "has no class", where=where, expected=f"a member ending in {LABEL_FIELD}", fix="set data.label_field"
        )
    return label
