"""The commands ``saga-dist data ...``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga_dist.cli.arguments import print_line
from saga_dist.errors import DataError

if TYPE_CHECKING:
    from saga_dist.data.image_sets import Splits

app = typer.Typer(help="Check a data set before training on it.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Check a data set before training on it."""


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="folder of the data set", metavar="PATH")],
    layout: Annotated[
        str, typer.Option(help="folder, manifest, cub, cars, aircraft, inat, sop, inshop or package.module:object")
    ] = "folder",
    manifest: Annotated[str, typer.Option(help="the list of layout manifest, .csv or .parquet")] = "",
    train_classes: Annotated[str, typer.Option(help="class list of layout folder")] = "",
    test_classes: Annotated[str, typer.Option(help="class list of layout folder")] = "",
    val_fraction: Annotated[float, typer.Option(help="data.val_fraction of the run")] = 0.2,
    seed: Annotated[int, typer.Option(help="run.seed of the run")] = 0,
    decode: Annotated[bool, typer.Option(help="decode every file")] = True,
    jobs: Annotated[int, typer.Option(min=0, help="threads that decode; 0: one per core")] = 0,
    classes: Annotated[bool, typer.Option("--classes", help="list every class")] = False,
) -> None:
    """Count images and classes, decode every file, print the split hash; exit code 2 when something is wrong."""
    from saga_dist.config import parse_config
    from saga_dist.data.check import class_sizes, summarize
    from saga_dist.runtime.build import build_splits
    from saga_dist.runtime.validation.data import check_classes, with_fitting_overrides

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("saga_dist").setLevel(logging.INFO)
    data = {
        "layout": layout,
        "root": str(path),
        "manifest": manifest,
        "train_classes": train_classes,
        "test_classes": test_classes,
        "val_fraction": val_fraction,
    }
    config = parse_config({"data": data, "run": {"seed": seed}}, where="command line")
    try:
        splits = build_splits(config.data, seed=config.run.seed)
    except DataError as error:
        raise with_fitting_overrides(config, error) from error
    for name in splits.names:
        print_line(summarize(name, splits.named(name)))
        if classes:
            for class_name, size in class_sizes(splits.named(name)):
                print_line(f"{'':<8}{size:>9,} {class_name}")
    print_line(f"split hash {splits.split_hash()} (data.val_fraction {val_fraction:g}, run.seed {seed})")
    try:
        check_classes(config)
    except DataError as error:
        print_line(f"a run with the default settings cannot start: {with_fitting_overrides(config, error)}")
    if decode:
        _decode_all(splits, jobs or os.cpu_count() or 1)


def _decode_all(splits: Splits, jobs: int) -> None:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from saga_dist.data.check import undecodable

    total, failed = sum(len(splits.named(name)) for name in splits.names), 0
    columns = (TextColumn("decoding"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("decoding", total=total)
        for problem in undecodable(splits, jobs=jobs, on_image=lambda: progress.advance(task)):
            failed += 1
            print_line(f"cannot be used: {problem}")
    print_line(f"decoded {total:,} images, {failed:,} cannot be used")
    if failed:
        raise typer.Exit(2)
