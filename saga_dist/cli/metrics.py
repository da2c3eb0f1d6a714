"""The command ``saga-dist metrics``: the registry of the names in metrics.jsonl."""

from __future__ import annotations

from typing import Annotated

import typer


def metrics(
    name: Annotated[
        str | None, typer.Argument(help="a name in metrics.jsonl, or a part of one", metavar="[NAME]")
    ] = None,
) -> None:
    """Explain metrics: what each measures, what a healthy run shows, what to do when yours does not."""
    from saga_dist.cli.reference import print_entry, print_overview
    from saga_dist.metrics.registry import metric_groups, metrics_called

    if name is None:
        for group in metric_groups():
            print_overview(group.title, ("name", "unit"), [(one.name, one.unit) for one in group.metric])
        return
    for one in metrics_called(name):
        facts = (
            ("measures", one.measures),
            ("title", one.title),
            ("unit", one.unit),
            ("healthy", one.healthy),
            ("otherwise", one.otherwise),
            ("only", one.only),
        )
        print_entry(one.name, facts)
