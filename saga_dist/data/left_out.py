"""Files of a data set that are left out, with the reason for each, and how that is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from saga_dist.errors import DataError

MOST_NAMED = 5
"""Number of reasons, folders or files that are named; the others are counted."""


class LeftOut(NamedTuple):
    """A file or folder that is left out."""

    path: str
    """Path relative to the folder of the data set, with forward slashes."""
    reason: str
    """Reason, as a text that fits behind "5 x"."""
    kind: Literal["ignored", "unusable", "unreadable"] = "ignored"
    """``unusable``: an image by its name that cannot be used; ``unreadable``: a folder or an entry that may hold images
    and cannot be read; ``ignored``: anything else, by its name or its place."""


def summary(left_out: Sequence[LeftOut]) -> str:
    """Returns one line with the number of files for each reason, ``left out 3 files: 2 x hidden, 1 x …``.

    Args:
        left_out: what was left out, at least one file.
    """
    counts = Counter(one.reason for one in left_out).most_common()
    shown = [f"{count:,} x {reason}" for reason, count in counts[:MOST_NAMED]]
    rest = sum(count for _, count in counts[MOST_NAMED:])
    return f"left out {_files(len(left_out))}: {', '.join([*shown, *([f'{rest:,} x other reasons'] if rest else [])])}"


def by_folder(left_out: Sequence[LeftOut]) -> Iterator[str]:
    """Yields one line for every reason with the number of files in each folder and the first path.

    Args:
        left_out: what was left out.
    """
    paths: dict[str, list[str]] = {}
    for one in left_out:
        paths.setdefault(one.reason, []).append(one.path)
    for reason, names in sorted(paths.items(), key=lambda item: -len(item[1])):
        folders = Counter(str(PurePosixPath(name).parent) for name in names).most_common()
        shown = [f"{number:,} in {folder}" for folder, number in folders[:MOST_NAMED]]
        if len(folders) > MOST_NAMED:
            shown.append(f"the others in {len(folders) - MOST_NAMED:,} more folders")
        yield f"{len(names):,} x {reason}: {', '.join(shown)}; first {min(names)}"


def refuse_unreadable(left_out: Sequence[LeftOut], root: Path) -> None:
    """Checks that every folder could be read, because its images would be missing without a word.

    Args:
        left_out: what was left out.
        root: folder that the paths are relative to.

    Raises:
        DataError: some cannot; the message names the first and gives the number of the others.
    """
    unreadable = [one for one in left_out if one.kind == "unreadable"]
    if unreadable:
        more = f" (and {len(unreadable) - 1:,} more)" if len(unreadable) > 1 else ""
        first = unreadable[0]
        raise DataError(
            f"{first.reason}{more}",
            where=str(root if first.path == "." else root / first.path),
            expected="a readable folder of images",
            fix="make it readable (chmod +rx), or move it away",
        )


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"
