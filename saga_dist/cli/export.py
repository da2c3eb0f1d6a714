"""The command ``saga-dist export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saga_dist.cli.arguments import ENCODER_HELP, Family, print_line
from saga_dist.errors import DataError
from saga_dist.utils.library_logging import quiet_libraries

FORMATS = ("hf", "sentence-transformers", "onnx")


def export(
    run: Annotated[Path, typer.Argument(help=ENCODER_HELP, metavar="RUN")],
    out: Annotated[Path, typer.Option("--out", help="new folder")],
    form: Annotated[str, typer.Option("--format", help=", ".join(FORMATS))] = "hf",
    family: Family = "",
) -> None:
    """Write the encoder (tower and pooler, no MLLM) in a format that other software reads, with a model card."""
    if form not in FORMATS:
        raise DataError(f"unknown format {form!r}", where="--format", expected=", ".join(FORMATS))
    quiet_libraries()
    from saga_dist.cli.progress import waiting

    with waiting(f"reading {run}"):
        from saga_dist.export.folder import export_encoder

        done = export_encoder(run, out, form=form, family=family)
    print_line(f"{out}: {form}, model {done.identity.sha256[:12]}")
    print_line(
        f"{done.num_params:,} parameters, {done.num_bytes / 1e6:.1f} MB, {done.ms_per_image:.1f} ms an image here"
    )
    print_line(
        f"checked: cosine {done.min_cosine:.6f} or more against the run's own encoder on {done.num_checked} images"
    )
