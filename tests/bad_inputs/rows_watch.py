"""Run directories that ``saga-dist watch`` cannot show, or shows in part."""

from __future__ import annotations

from collections.abc import Callable

from bad_inputs.row import BadInput, Workspace

from saga_dist.config import load_config

WATCHED = "run directory that is watched"


def run_with(**files: str) -> Callable[[Workspace], object]:
    """Returns a preparation: a run with one step and the given files, whose names have _ in place of the dot."""

    def prepare(workspace: Workspace) -> None:
        run = workspace.folder / "run"
        run.mkdir()
        (run / "config.json").write_text(load_config(workspace.write_config()).model_dump_json())
        (run / "metrics.jsonl").write_text('{"step": 1, "loss/dml": 0.5}\n')
        for name, content in files.items():
            path = run / name.replace("__", "/").replace("_json", ".json").replace("_arrow", ".arrow")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)

    return prepare


ROWS = [
    BadInput(
        "a folder to watch that is not there",
        WATCHED,
        "watch runs/none --once",
        ("runs/none/config.json: cannot be read (No such file or directory)", "expected a run directory"),
    ),
    BadInput(
        "a damaged configuration of a run to watch",
        WATCHED,
        "watch run --once",
        ("config.json: not valid JSON",),
        run_with(config_json="{"),
    ),
    BadInput(
        "damaged metrics of a run to watch",
        WATCHED,
        "watch run --once",
        ("metrics.jsonl: holds a line that is not a row", "delete it"),
        run_with(metrics_jsonl='{"loss/dml": 0.5}\n'),
    ),
    BadInput(
        "damaged results of a run to watch",
        WATCHED,
        "watch run --once",
        ("results.json",),
        run_with(results_json="{}"),
    ),
    BadInput(
        "a damaged recording of the last step, beside which the numbers are shown",
        WATCHED,
        "watch run --once",
        ("stopped: step 1 of 2", "loss/dml"),
        run_with(rollouts__step_000001_arrow="not Arrow"),
        outcome="note",
    ),
    BadInput(
        "a view every zero seconds",
        "seconds between two looks",
        "watch run --every 0",
        ("--every", "0.2"),
    ),
    BadInput(
        "a negative distance between two groups in the loggers",
        "distance between two groups",
        "train birds logging.group_every_steps=-1 --dry-run",
        ("logging.group_every_steps = -1", "greater than or equal to 0"),
    ),
    BadInput(
        "half a step between two groups in the loggers",
        "distance between two groups",
        "train birds logging.group_every_steps=0.5 --dry-run",
        ("logging.group_every_steps = 0.5", "integer"),
    ),
]
