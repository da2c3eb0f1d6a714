"""Every command of every page parses: the command exists, its options and arguments do, and so do its settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from saga_dist.cli.main import app
from saga_dist.cli.usage import UsageError
from saga_dist.config.reference import config_keys

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "deploy").glob("*.md"))
KEYS = {key.key for key in config_keys()}
SCALED = {"rollout", "replay"}
"""Names that `saga-dist scale` takes in place of configuration keys."""
SHELLS = {"", "sh", "bash", "console"}
ENDS = {"|", ";", "&&", ">", ">>", "&", "2>"}
MAIN: Any = typer.main.get_command(app)


class Command(NamedTuple):
    """One command of a page."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def commands(page: Path) -> Iterator[Command]:
    """Yields the commands of this package in the fenced blocks of a page, without comments."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        if language not in SHELLS:
            continue
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if "saga-dist" not in line or line.lstrip().startswith("#"):
                continue
            words = shlex.split(line.replace(";", " ; "), comments=True)
            for place, word in enumerate(words):
                before = words[place - 1] if place else ";"
                if word.rpartition("/")[2] != "saga-dist" or not (before in (*ENDS, "--") or "=" in before):
                    continue
                rest = words[place + 1 :]
                ends = [index for index, word in enumerate(rest) if word in ENDS]
                yield Command(page.relative_to(ROOT).as_posix(), tuple(rest[: ends[0] if ends else None]))


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))


def parse(words: tuple[str, ...]) -> dict[str, Any]:
    """Returns the parameters of a command line without running the command; {} for options of the program itself.

    Raises:
        UsageError: it does not parse.
        KeyError: there is no such command.
    """
    command, rest = MAIN, list(words)
    while hasattr(command, "commands"):
        if not rest or rest[0].startswith("-"):
            return {}
        command = command.commands[rest.pop(0)]
    with command.make_context(command.name, rest) as context:
        return dict(context.params)


def test_pages_have_commands() -> None:
    assert len(COMMANDS) > 70
    pages = {"README.md", "deploy/README.md", "docs/index.md", "docs/own-images.md", "docs/troubleshooting.md"}
    assert {command.page for command in COMMANDS} >= pages


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_parses(command: Command) -> None:
    parameters = parse(command.words)
    given = parameters.get("overrides") or []
    names = {word.partition("=")[0] for word in given if "=" in word}
    unknown = {name for name in names if name not in KEYS and not name.startswith("objective.metric_params.")}
    assert unknown <= (SCALED if command.words[0] == "scale" else set())


@pytest.mark.parametrize(
    "words", ["trian CONFIG", "train CONFIG --run-directory x", "docs --pat", "search index -k five"]
)
def test_a_wrong_command_is_found_out(words: str) -> None:
    with pytest.raises((UsageError, KeyError)):
        parse(tuple(words.split()))
