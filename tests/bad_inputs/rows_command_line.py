"""Mistakes on the command line: names of configurations, arguments, overrides, new configurations, recorded steps."""

from __future__ import annotations

from collections.abc import Callable

from bad_inputs.row import BadInput, Workspace

from saga_dist.config import load_config


def write(name: str, content: str | bytes) -> Callable[[Workspace], object]:
    """Returns a preparation that writes a file into the workspace."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda workspace: (workspace.folder / name).write_bytes(data)


def run_config(workspace: Workspace) -> object:
    return workspace.write_config()


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


ROWS = [
    BadInput(
        "a configuration that is nowhere",
        "configuration not found",
        "train mine.toml",
        ("mine.toml: cannot read the file (No such file", "a shipped one: aircraft, birds, cars", "check the path"),
    ),
    BadInput(
        "a misspelt name of a shipped configuration",
        "configuration not found",
        "train brids --dry-run",
        ("brids: cannot read the file", "did you mean birds?"),
    ),
    BadInput(
        "a misspelt path of a shipped configuration",
        "configuration not found",
        "estimate configs/evidence/g88.toml",
        ("configs/evidence/g88.toml", "did you mean evidence/g8?"),
    ),
    BadInput(
        "an absolute path of a configuration that is not there",
        "configuration not found",
        "doctor {folder}/none.toml",
        ("none.toml: cannot read the file (No such file or directory); check the path",),
    ),
    BadInput(
        "a misspelt name of a shipped table",
        "configuration not found",
        "sweep table2_cubs",
        ("table2_cubs", "did you mean tables/table2_cub?"),
    ),
    BadInput(
        "a world of the oracle screen that is not there",
        "configuration not found",
        "evidence screen nowhere",
        ("nowhere: cannot read the file", "evidence/h"),
    ),
    BadInput(
        "a vocabulary file that is not there",
        "configuration not found",
        "train run.toml prompt.vocabulary=mine.toml --dry-run",
        ("mine.toml: cannot read the file", "vocabularies/clothes"),
        run_config,
    ),
    BadInput(
        "a folder where a configuration is expected",
        "file is no configuration",
        "train {folder} --dry-run",
        ("cannot read the file (Is a directory)", "check the path"),
    ),
    BadInput(
        "a picture where a configuration is expected",
        "file is no configuration",
        "train picture.toml --dry-run",
        ("picture.toml: the file is not UTF-8 text; expected TOML",),
        write("picture.toml", b"\x89PNG\r\n\x1a\n\xff"),
    ),
    BadInput(
        "a configuration in JSON",
        "file is no configuration",
        "train run.toml --dry-run",
        ("run.toml: not valid TOML", "line 1"),
        write("run.toml", '{"run": {"steps": 3}}'),
    ),
    BadInput(
        "a configuration with a table left open",
        "file is no configuration",
        "manifest run.toml",
        ("run.toml: not valid TOML",),
        write("run.toml", "[run\nsteps = 3\n"),
    ),
    BadInput(
        "a table of variants where a run is expected",
        "file is no configuration",
        "train tables/birds --dry-run",
        ("birds.toml: a table of variants; expected the configuration of one run", "`saga-dist sweep tables/birds`"),
    ),
    BadInput(
        "a run where a table of variants is expected",
        "file is no configuration",
        "sweep run.toml --dry-run",
        ("run.toml: title: Field required; expected a table of variants", "`saga-dist train run.toml`"),
        run_config,
    ),
    BadInput(
        "an unknown command",
        "wrong arguments",
        "tarin run.toml",
        ("saga-dist: no such command 'tarin'; did you mean 'train'?", "see `saga-dist --help`"),
    ),
    BadInput(
        "an unknown command of a group",
        "wrong arguments",
        "evidence shwo run",
        ("saga-dist evidence: no such command 'shwo'", "see `saga-dist evidence --help`"),
    ),
    BadInput(
        "an unknown option",
        "wrong arguments",
        "train run.toml --steps 3",
        ("saga-dist train: no such option: --steps", "see `saga-dist train --help`"),
    ),
    BadInput(
        "an argument that is missing",
        "wrong arguments",
        "report",
        ("saga-dist report: missing argument 'RUN…'",),
    ),
    BadInput(
        "an option without its value",
        "wrong arguments",
        "train run.toml --run-dir",
        ("saga-dist: option '--run-dir' requires an argument",),
    ),
    BadInput(
        "an argument too many",
        "wrong arguments",
        "rollouts run other",
        ("saga-dist rollouts: got unexpected extra argument", "other"),
    ),
    BadInput(
        "an unknown benchmark",
        "wrong arguments",
        "bench nope",
        ("saga-dist bench: invalid value for '[NAME]': 'nope' is not one of 'all', 'replay'",),
    ),
    BadInput(
        "a number of seconds in words",
        "wrong arguments",
        "scale run --wait long",
        ("saga-dist scale: invalid value for '--wait'",),
    ),
    BadInput(
        "an override without a section",
        "wrong override",
        "train run.toml steps=3 --dry-run",
        ("override 'steps=3'", "expected section.key=value"),
        run_config,
    ),
    BadInput(
        "an override without a value",
        "wrong override",
        "train run.toml run.steps= --dry-run",
        ("run.steps = ''",),
        run_config,
    ),
    BadInput(
        "an override of a whole section",
        "wrong override",
        "train run.toml run.steps.first=3 --dry-run",
        ("override 'run.steps.first=3'", "expected a key below a section"),
        run_config,
    ),
    BadInput(
        "an override with a word where a number is expected",
        "wrong override",
        "train run.toml run.steps=three --dry-run",
        ("run.steps = 'three'",),
        run_config,
    ),
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
        ("nowhere/mine.toml: cannot be written (No such file or directory)", "or choose another NAME"),
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
