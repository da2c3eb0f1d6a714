"""The command ``saga-dist evidence screen``."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga_dist.utils.library_logging import quiet_libraries
from saga_dist.utils.printable import log_to_stderr

if TYPE_CHECKING:
    from rich.console import Console

    from saga_dist.diagnostics.screen_results import Screen


def screen(
    worlds: Annotated[
        list[Path] | None, typer.Argument(help="run configurations [configs/evidence]", metavar="[WORLD.toml]…")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, for every world; repeat it")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="seeds of every row")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="file for the results; worlds already in it are not run again")
    ] = None,
) -> None:
    """Screen worlds with the oracle: measure how much the MLLM's gradient can gain at best over a tuned metric loss."""
    quiet_libraries()
    log_to_stderr()
    from rich.console import Console

    from saga_dist.diagnostics.screen import screen_world
    from saga_dist.diagnostics.screen_configs import load_worlds
    from saga_dist.diagnostics.screen_results import Screen, load_screen
    from saga_dist.utils.atomic_io import probe_output

    console = Console()
    if json_file is not None:
        probe_output(json_file, option="--json")
    chosen = load_worlds(worlds or [], overrides or [])
    options = [*(f"--set {shlex.quote(text)}" for text in overrides or []), f"--seeds {seeds}"]
    command = " ".join(["saga-dist evidence screen", *(str(world.path) for world in chosen), *options])
    done = load_screen(json_file) if json_file and json_file.exists() else Screen(command=command)
    started = time.monotonic()

    def report(line: str) -> None:
        console.print(f"{time.monotonic() - started:5.0f} s  {line}", highlight=False, markup=False, soft_wrap=True)

    for world in chosen:
        if done.has(world.name, world.config.digest(), range(seeds)):
            report(f"{world.name}: in {json_file} already")
            continue
        result = screen_world(world, seeds=range(seeds), report=report)
        done = done.with_result(result, command=command)
        if json_file:
            done.save(json_file)
    _show(done, console)


def _show(done: Screen, console: Console) -> None:
    from saga_dist.cli.console import widen
    from saga_dist.diagnostics.screen_results import HOW_TO_READ, table

    widen(console, 140)
    console.print()
    console.print(table(done))
    console.print(HOW_TO_READ, highlight=False)
