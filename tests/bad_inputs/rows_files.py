"""Files and directories that are full, read-only, gone, of somebody else or not what they seem."""

from __future__ import annotations

from bad_inputs.row import BadInput, Workspace

from saga_dist.config import load_config


def existing_file(workspace: Workspace) -> None:
    workspace.image_folder(classes=2, images=1)
    (workspace.folder / "mine.toml").write_text("precious")


def folder_in_its_place(workspace: Workspace) -> None:
    workspace.image_folder(classes=2, images=1)
    (workspace.folder / "mine.toml").mkdir()


def run_without_recordings(workspace: Workspace) -> None:
    (workspace.folder / "run").mkdir()
    config = load_config(workspace.write_config())
    (workspace.folder / "run" / "config.json").write_text(config.model_dump_json())


ROWS: list[BadInput] = [
    BadInput(
        "a new configuration over one that is there",
        "new configuration",
        "init mine --data data",
        ("mine.toml: there is something already", "choose another NAME"),
        existing_file,
    ),
    BadInput(
        "a new configuration over a folder",
        "new configuration",
        "init mine --data data",
        ("mine.toml: there is something already", "choose another NAME"),
        folder_in_its_place,
    ),
    BadInput(
        "a new configuration in a folder that is not there",
        "new configuration",
        "init nowhere/mine --data data",
        ("nowhere/mine.toml: cannot be written (No such file or directory)", "choose another NAME"),
        lambda workspace: workspace.image_folder(classes=2, images=1),
    ),
    BadInput(
        "a new configuration for images that are not there",
        "new configuration",
        "init mine --data nowhere",
        ("nowhere: cannot read the data set (No such file or directory)",),
    ),
    BadInput(
        "a new configuration for a single file",
        "new configuration",
        "init mine --data picture.png",
        ("picture.png: cannot read the data set (Not a directory)",),
        lambda workspace: (workspace.folder / "picture.png").touch(),
    ),
    BadInput(
        "a new configuration for a folder without class folders",
        "new configuration",
        "init mine --data data/class_00",
        ("data/class_00: no known layout", "one folder of images per class", "the folder that holds the class folders"),
        lambda workspace: workspace.image_folder(classes=2, images=1),
    ),
    BadInput(
        "a new configuration with an unknown key",
        "new configuration",
        "init mine --data data run.stepps=3",
        ("mine.toml: unknown key run.stepps; did you mean run.steps?",),
        lambda workspace: workspace.image_folder(classes=2, images=1),
    ),
    BadInput(
        "a new configuration without a folder of images",
        "new configuration",
        "init mine",
        ("saga-dist init: missing option '--data'",),
    ),
    BadInput(
        "a step counted from 0",
        "recorded rollouts",
        "rollouts run --step 0",
        ("saga-dist rollouts: invalid value for '--step'", "1"),
    ),
    BadInput(
        "a step that was not recorded",
        "recorded rollouts",
        "rollouts run --step 3",
        ("run/rollouts: no recording of step 3; expected a recorded step (none)",),
        run_without_recordings,
    ),
    BadInput(
        "a pair of another form",
        "recorded rollouts",
        "rollouts run --pair third",
        ("--pair: no group of pair 'third'",),
        run_without_recordings,
    ),
    BadInput(
        "rollouts of a folder that is no run",
        "recorded rollouts",
        "rollouts {folder}",
        ("config.json: cannot be read (No such file or directory); expected a run directory",),
    ),
    BadInput(
        "a single pair on a page",
        "recorded rollouts",
        "rollouts run --pair s000001.m0.p00 --out page.html",
        ("--pair with --out", "drop one"),
        run_without_recordings,
    ),
]
