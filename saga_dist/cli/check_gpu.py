"""The command ``saga-dist check-gpu``; it imports no torch itself, because every section has a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from saga_dist.utils.library_logging import quiet_libraries


def check_gpu(
    size: Annotated[
        str, typer.Option(help="tiny, 2b, 4b, 8b; auto: the largest that the GPU's memory allows, tiny without a GPU")
    ] = "auto",
    sections: Annotated[
        str, typer.Option(help="names of sections, separated by commas; all without it", metavar="A,B")
    ] = "",
    out: Annotated[Path, typer.Option(help="new folder for results, rates and logs", metavar="FOLDER")] = Path(
        "gpu-check"
    ),
    minutes: Annotated[float, typer.Option(min=0.1, help="longest time of all sections together, minutes")] = 9.0,
) -> None:
    """Measure this machine's GPU with random weights in at most nine minutes.

    Kernels, gradients, replay, learner, memory and engine are sections with a time cap each. `make test-gpu` tests
    more. Prints a JSON line for each section and writes rates for `estimate --measured`. Nothing is downloaded.
    """
    quiet_libraries()
    from saga_dist.cli.progress import waiting
    from saga_dist.diagnostics.gpu_check.runner import CheckRun, choose_size, prepare_folder
    from saga_dist.diagnostics.gpu_check.sections import chosen_sections
    from saga_dist.diagnostics.gpu_check.sizes import check_size

    wanted = chosen_sections(sections)
    check_size(size)
    prepare_folder(out)
    with waiting("looking for a GPU"):
        check = CheckRun(choose_size(size, out), out, limit_s=60 * minutes)
    for section in wanted:
        with waiting(f"measuring {section.name}"):
            result = check.run(section)
        typer.echo(json.dumps(result.as_json()))
    rates = check.write_rates()
    typer.echo(json.dumps({"section": "rates", "file": None if rates is None else str(rates)}))
    if any(result.failed for result in check.results):
        raise typer.Exit(1)
