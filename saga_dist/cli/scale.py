"""``saga-dist scale``: shows the workers of a running job, or changes how many there are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga_dist.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from saga_dist.runtime.ray.scale import RunView


def scale(
    run_directory: Annotated[Path, typer.Argument(help="run directory of a running training", metavar="RUN")],
    targets: Annotated[
        list[str] | None, typer.Argument(help="rollout=N replay=N; without, show who works", metavar="[ROLE=N]…")
    ] = None,
    wait: Annotated[float, typer.Option(help="seconds to wait until they run", min=0)] = 120.0,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="workers that leave return their groups instead of finishing them")
    ] = False,
) -> None:
    """Show or change the number of rollout and replay workers of a running training."""
    from rich.console import Console

    from saga_dist.runtime.ray.scale import read_workers, request_scale, wait_for

    asked = parse_targets(targets or [])
    if asked:
        request_scale(run_directory, asked, at_once=at_once)
        view = wait_for(run_directory, asked, deadline_s=wait)
    else:
        view = read_workers(run_directory)
    Console().print(workers_table(view, now=time.time()))


def parse_targets(texts: Sequence[str]) -> dict[str, int]:
    """Returns the number of workers by role.

    Raises:
        ConfigError: not ROLE=NUMBER, or a role twice.
    """
    targets: dict[str, int] = {}
    for text in texts:
        role, separator, number = text.partition("=")
        if not separator or not number.isdecimal() or role in targets:
            what = "said twice" if role in targets else "not ROLE=NUMBER"
            raise ConfigError(f"{text!r}: {what}", where="command line", expected="for example rollout=3 replay=2")
        targets[role] = int(number)
    return targets


def workers_table(view: RunView, *, now: float) -> Table:
    """Returns a table with a row per worker.

    Args:
        view: of the run.
        now: seconds since 1970.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for heading in ("role", "worker", "state", "host", "pid", "up for"):
        table.add_column(heading, justify="right" if heading in ("pid", "up for") else "left", no_wrap=True)
    notes = []
    for role, pool in view.pools.items():
        for member in pool.members:
            up = (str(member.pid), f"{max(0.0, now - member.since):.0f} s") if member.pid else ("", "")
            table.add_row(role, member.name, member.state, member.host, *up)
        notes.append(f"{role}: {pool.num_up} of {pool.target} run (range {pool.fewest} to {pool.most})")
    table.caption = "\n".join(notes)
    return table
