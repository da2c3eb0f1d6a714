"""The command ``saga-dist config``: the reference of the configuration, and its JSON schema."""

from __future__ import annotations

from typing import Annotated

import typer


def config(
    key: Annotated[
        str | None, typer.Argument(help="section.key, a section, or a part of a name", metavar="[KEY]")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of a configuration file")] = False,
) -> None:
    """Explain configuration keys: meaning, unit, range, default, the paper's value, when to change them."""
    import json

    from saga_dist.cli.reference import print_entry, print_overview
    from saga_dist.config.reference import config_schema, config_sections, keys_called

    if schema:
        typer.echo(json.dumps(config_schema(), indent=1))
        return
    if key is None:
        for section in config_sections():
            rows = [(one.key, one.default, one.unit, one.values) for one in section.keys]
            print_overview(f"[{section.name}]  {section.about}", ("key", "default", "unit", "values"), rows)
        return
    for one in keys_called(key):
        facts = (
            ("meaning", one.meaning),
            ("values", one.values),
            ("unit", one.unit),
            ("default", one.default),
            ("paper", one.paper),
            ("change it", one.change),
        )
        print_entry(one.key, facts)
