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
    from collections.abc import Mapping

    from saga_dist.data.image_sets import ImageSet

app = typer.Typer(help="Check a data set before training on it.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Check a data set before training on it."""


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="folder of the data set", metavar="PATH")],
    layout: Annotated[
        str,
        typer.Option(
            help="folder, manifest, webdataset, hf_dataset, cub, cars, aircraft, inat, sop, inshop or "
            "package.module:object"
        ),
    ] = "folder",
    manifest: Annotated[str, typer.Option(help="the list of layout manifest, .csv or .parquet")] = "",
    train_classes: Annotated[str, typer.Option(help="class list of layout folder")] = "",
    test_classes: Annotated[str, typer.Option(help="class list of layout folder")] = "",
    image_field: Annotated[str, typer.Option(help="images of layout webdataset or hf_dataset")] = "",
    label_field: Annotated[str, typer.Option(help="classes of layout webdataset or hf_dataset")] = "",
    val_fraction: Annotated[float, typer.Option(help="data.val_fraction of the run")] = 0.2,
    seed: Annotated[int, typer.Option(help="run.seed of the run")] = 0,
    decode: Annotated[bool, typer.Option(help="decode every file")] = True,
    jobs: Annotated[int, typer.Option(min=0, help="threads that decode; 0: one per core")] = 0,
    classes: Annotated[bool, typer.Option("--classes", help="list every class")] = False,
    every: Annotated[bool, typer.Option("--all", help="name every file, not only the first five")] = False,
) -> None:
    """Count images and classes, decode every file, print the split hash; exit code 2 when something is wrong.

    Also says what is left out, which images are in two splits, and which queries cannot be found. Images that cannot be
    divided into splits are decoded all the same.
    """
    from saga_dist.cli.data_report import print_decoded, print_left_out, print_parts
    from saga_dist.config import parse_config
    from saga_dist.data.layouts import load_splits
    from saga_dist.data.layouts.division import SplitError
    from saga_dist.runtime.validation.data import check_classes, with_fitting_overrides

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("saga_dist").setLevel(logging.INFO)
    data = {
        "layout": layout,
        "root": str(path),
        "manifest": manifest,
        "train_classes": train_classes,
        "test_classes": test_classes,
        "image_field": image_field,
        "label_field": label_field,
        "val_fraction": val_fraction,
    }
    config = parse_config({"data": data, "run": {"seed": seed}}, where="command line")
    split_error: SplitError | None = None
    parts: Mapping[str, ImageSet]
    try:
        splits = load_splits(config.data, seed=config.run.seed)
    except SplitError as error:
        split_error, parts, left_out = error, error.listed, error.left_out
    else:
        parts, left_out = {name: splits.named(name) for name in splits.names}, splits.left_out
    print_parts(parts, classes=classes)
    if split_error is None:
        print_line(f"split hash {splits.split_hash()} (data.val_fraction {val_fraction:g}, run.seed {seed})")
    print_left_out(left_out, every=every)
    all_can_be_used = not decode or print_decoded(parts, jobs=jobs or os.cpu_count() or 1, every=every)
    if split_error is not None:
        raise with_fitting_overrides(config, split_error) from split_error
    try:
        check_classes(config, splits)
    except DataError as error:
        print_line(f"a run with the default settings cannot start: {with_fitting_overrides(config, error)}")
    if not all_can_be_used:
        raise typer.Exit(2)
