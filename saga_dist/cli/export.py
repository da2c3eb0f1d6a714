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
    push_to_hub: Annotated[
        str, typer.Option("--push-to-hub", help="then upload the folder to a Hugging Face hub", metavar="USER/NAME")
    ] = "",
    private: Annotated[bool, typer.Option("--private", help="make a new repository of the hub private")] = False,
) -> None:
    """Write the encoder (tower and pooler, no MLLM) in a format that other software reads, with a model card."""
    if private and not push_to_hub:
        raise DataError("--private without --push-to-hub", where="export", fix="name the repository, or remove it")
    if form not in FORMATS:
        raise DataError(f"unknown format {form!r}", where="--format", expected=", ".join(FORMATS))
    quiet_libraries()
    from saga_dist.cli.progress import waiting
    from saga_dist.export import hub

    if push_to_hub:
        with waiting("asking the hub"):
            hub.check_hub(push_to_hub)
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
    if push_to_hub:
        with waiting(f"uploading {out}"):
            address = hub.push_to_hub(out, push_to_hub, private=private)
        print_line(f"{address}: huggingface_hub.snapshot_download({push_to_hub!r}) brings the folder back")
