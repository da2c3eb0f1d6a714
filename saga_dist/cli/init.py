"""The command ``saga-dist init``: writes a commented configuration for one's own data."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from saga_dist.cli.arguments import Overrides, print_line
from saga_dist.errors import ConfigError

BASES = {"inat": "inat_aves", "manifest": "folder", "webdataset": "folder", "hf_dataset": "folder"}
"""Layout to the shipped configuration that its own starts from, where it is not the one of the layout's name."""


def init(
    name: Annotated[Path, typer.Argument(help="file to write; .toml is added", metavar="NAME")],
    data: Annotated[Path, typer.Option("--data", help="folder of the images; its layout is detected", metavar="ROOT")],
    overrides: Overrides = None,
) -> None:
    """Write a commented configuration for your own images: every key with its description."""
    from saga_dist.config.loading import load_tree, parse_config
    from saga_dist.config.template import commented_toml, toml_value
    from saga_dist.data.layouts.detect import detect_layout
    from saga_dist.utils.shipped import shipped_folder

    file = name if name.suffix == ".toml" else name.with_name(f"{name.name}.toml")
    layout = detect_layout(data)
    base = BASES.get(layout, layout)
    own = [f"data.layout={layout}", f"data.root={toml_value(str(data.resolve()))}"]
    tree = load_tree(shipped_folder() / "configs" / f"{base}.toml", [*own, *(overrides or [])])
    parse_config(tree, where=str(file))
    steps = (
        f"saga-dist data check {shlex.quote(str(data))} --layout {layout}",
        f"saga-dist train {shlex.quote(str(file))} --dry-run",
    )
    heading = (
        f"Training on data of the layout {layout}, from the shipped configuration {base}. Next:",
        *(f"  {step}" for step in steps),
        "A key that is a comment has its default; remove its # to set it. Every key is also an argument of commands:",
        "section.key=value.",
    )
    _write_new(file, commented_toml(tree, heading=heading))
    print_line(f"{file}: layout {layout}, from the shipped configuration {base}; next: {', then '.join(steps)}")


def _write_new(file: Path, text: str) -> None:
    """Writes a file that does not exist yet.

    Raises:
        ConfigError: there is something of this name.
        OutputError: the file cannot be written.
    """
    from saga_dist.utils.atomic_io import write_atomic
    from saga_dist.utils.output_errors import output_errors

    with output_errors(file, option="NAME"):
        taken = file.exists() or file.is_symlink()
    if taken:
        raise ConfigError("there is something already", where=str(file), fix="choose another NAME, or remove it first")
    write_atomic(file, text.encode(), option="NAME")
