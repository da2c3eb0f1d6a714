"""Prints what ``saga-dist data check`` finds out about the images of a data set."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from saga_dist.cli.arguments import print_line
from saga_dist.data.check import class_sizes, decode_all, summarize, unfindable
from saga_dist.data.duplicates import Twins, identical, near
from saga_dist.data.left_out import MOST_NAMED, LeftOut, by_folder, summary

if TYPE_CHECKING:
    from saga_dist.data.image_sets import ImageSet

LINE_EVERY_S = 5.0
"""Seconds between two lines of progress when output goes to a file or a job log."""


def print_parts(parts: Mapping[str, ImageSet], *, classes: bool) -> None:
    """Prints images and classes of each split, and the queries that cannot be found.

    Args:
        parts: images by split.
        classes: True to list every class.
    """
    for name, images in parts.items():
        if images.class_names:
            print_line(summarize(name, images))
        if classes:
            for class_name, size in class_sizes(images):
                print_line(f"{'':<8}{size:>9,} {class_name}")
    for line in unfindable(parts):
        print_line(line)


def print_left_out(left_out: Sequence[LeftOut], *, every: bool) -> None:
    """Prints how many files are left out, and for each reason in which folders they are.

    Args:
        left_out: what is left out.
        every: True to name every file.
    """
    if not left_out:
        return
    print_line(summary(left_out))
    for line in by_folder(left_out):
        print_line(f"  {line}")
    if every:
        for one in sorted(left_out):
            print_line(f"left out: {one.path}: {one.reason}")


def print_decoded(parts: Mapping[str, ImageSet], *, jobs: int, every: bool) -> bool:
    """Decodes every image; prints which cannot be used and which show the same. Returns True when all can be used.

    Args:
        parts: images by split.
        jobs: number of threads.
        every: True to name every image.
    """
    total = sum(len(images) for images in parts.values())
    with _progress(total) as on_image:
        decoded = decode_all(parts, jobs=jobs, on_image=on_image)
    _print_first((f"cannot be used: {problem}" for problem in decoded.problems), every=every)
    print_line(f"decoded {total:,} images, {len(decoded.problems):,} cannot be used")
    twins = list(identical(decoded.images))
    across = [pair for pair in twins if pair.one.split != pair.other.split]
    within = [pair for pair in twins if pair.one.split == pair.other.split]
    _print_twins("identical images in two splits", across, every=every)
    _print_twins("identical images in two classes", within, every=every)
    _print_twins("nearly identical images in two splits", list(near(decoded.images)), every=every)
    return not decoded.problems


def _print_twins(what: str, twins: Sequence[Twins], *, every: bool) -> None:
    if twins:
        print_line(f"{what}: {len(twins):,} {'pair' if len(twins) == 1 else 'pairs'}")
        _print_first(
            (f"  {one.split} {one.name} = {other.split} {other.name}" for one, other in twins),
            every=every,
        )


def _print_first(lines: Iterable[str], *, every: bool) -> None:
    """Prints the first lines and the number of the others, or every line."""
    rest = iter(lines)
    for line in rest if every else itertools.islice(rest, MOST_NAMED):
        print_line(line)
    others = sum(1 for _ in rest)
    if others:
        print_line(f"  and {others:,} more (--all names them)")


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each image; it shows a bar in a terminal, and a line every 5 s elsewhere."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("decoding"), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("decoding", total=total)
            yield lambda: progress.advance(task)
        return
    start = last = time.monotonic()
    done = 0

    def count() -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last >= LINE_EVERY_S:
            last = now
            left_s = (now - start) / done * (total - done)
            console.print(f"decoded {done:,} of {total:,} images, {left_s:.0f} s left", highlight=False)

    yield count
