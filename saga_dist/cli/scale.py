"""The command ``saga-dist scale``: shows the workers of a running training, or changes their number."""

from __future__ import annotations

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
        list[str] | None, typer.Argument(help="rollout=N replay=N; without, show the workers", metavar="[ROLE=N]…")
    ] = None,
    wait: Annotated[float, typer.Option(help="seconds to wait until that many workers run", min=0)] = 120.0,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="stopped workers return their groups instead of finishing them")
    ] = False,
) -> None:
    """Show or change the number of rollout and replay workers of a running training."""
    from rich.console import Console

    from saga_dist.runtime.ray.scale_command import read_workers, request_scale, wait_for

    requested = parse_targets(targets or [])
    if requested:
        request_scale(run_directory, requested, at_once=at_once)
        view = wait_for(run_directory, requested, deadline_s=wait)
    else:
        view = read_workers(run_directory)
    Console().print(workers_table(view, now=view.written_at))


def parse_targets(texts: Sequence[str]) -> dict[str, int]:
    """Returns the requested number of workers by role.

    Args:
        texts: arguments ``ROLE=NUMBER``, e.g. ``rollout=3``.

    Raises:
        ConfigError: a text is not ROLE=NUMBER, or names a role twice.
    """
    targets: dict[str, int] = {}
    for text in texts:
        role, separator, number = text.partition("=")
        if not separator or not number.isdecimal() or role in targets:
            what = "given twice" if role in targets else "not ROLE=NUMBER"
            raise ConfigError(f"{text!r}: {what}", where="command line", expected="for example rollout=3 replay=2")
        targets[role] = int(number)
    return targets


def workers_table(view: RunView, *, now: float) -> Table:
    """Returns a table with a row per worker, and a caption with the worker count of each role.

    Args:
        view: workers of a run.
        now: time of the view by the run's clock, seconds since 1970, from which the uptime is computed.
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
