"""Pages of several runs, limits of a page, and what a page has to leave out."""

from __future__ import annotations

from collections.abc import Callable

from bad_inputs.row import BadInput, Workspace

from saga_dist.config import load_config


def runs(*names: str, **files: str) -> Callable[[Workspace], None]:
    """Returns a preparation that writes run directories, each with the files given as ``stem="content"`` of the last.

    Args:
        names: directories.
        files: content of ``metrics.jsonl`` (``metrics``) and ``results.json`` (``results``) of the last directory.
    """
    suffixes = {"metrics": ".jsonl", "results": ".json"}

    def prepare(workspace: Workspace) -> None:
        config = load_config(workspace.write_config())
        for name in names:
            (workspace.folder / name).mkdir(parents=True)
            (workspace.folder / name / "config.json").write_text(config.model_dump_json())
        for stem, content in files.items():
            (workspace.folder / names[-1] / f"{stem}{suffixes[stem]}").write_text(content)

    return prepare


def run_and_link(workspace: Workspace) -> None:
    runs("mine")(workspace)
    (workspace.folder / "link").symlink_to("mine")


ROWS = [
    *(
        BadInput(name, "runs on one page", command, says, prepare)
        for name, command, says, prepare in (
            (
                "a run beside itself",
                "report mine mine",
                ("RUN: mine is given twice", "name each run once"),
                runs("mine"),
            ),
            ("a run beside a link to it", "report mine link", ("RUN: link is given twice",), run_and_link),
            (
                "more runs than a chart has lines",
                f"report {' '.join(f'run_{index}' for index in range(13))}",
                ("RUN: 13 runs; expected at most 12 on one page; leave some out",),
                runs(),
            ),
            (
                "a run beside a folder that is no run",
                "report mine photos",
                ("photos/config.json: cannot be read", "expected a run directory"),
                runs("mine"),
            ),
            (
                "a run beside one with damaged metrics",
                "report mine other",
                ("other/metrics.jsonl",),
                runs("mine", "other", metrics='not JSON\n{"step": 1}\n'),
            ),
            (
                "a run beside one with damaged results",
                "report mine other",
                ("other/results.json", "expected a results.json"),
                runs("mine", "other", results="{}"),
            ),
        )
    ),
    *(
        BadInput(name, "limits of a page", f"report mine {option} {value}", (f"invalid value for '{option}'",))
        for name, option, value in (
            ("a map of fewer than no images", "--map-images", "-1"),
            ("too few images to search", "--images", "9"),
            ("queries by a word", "--rows", "all"),
            ("attention of a share of the groups", "--attention", "0.5"),
        )
    ),
    BadInput(
        "a page of a run without its encoder",
        "parts that a page leaves out",
        "report mine",
        ("rollouts: 0 of 0 groups", "The run has not written its encoder (model/) yet."),
        runs("mine"),
        outcome="note",
    ),
    BadInput(
        "pages of runs that both have nothing yet",
        "parts that a page leaves out",
        "report mine other --out page.html",
        ("The run has not written its encoder", "page.html: 0."),
        runs("mine", "other"),
        outcome="note",
    ),
]
