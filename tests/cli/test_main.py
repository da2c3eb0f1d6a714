"""The command line as a user meets it: speed of --help and --dry-run, one line and exit 2 for every mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from saga_dist import __version__
from saga_dist.cli import main as cli
from saga_dist.config import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config_file(tmp_path: Path, tiny_checkpoint: Path, write_tiny_config: Callable[..., Path]) -> Path:
    return write_tiny_config(tmp_path / "tiny.toml", tiny_checkpoint, checkpoint={"every_steps": 1})


def run_cli(
    *arguments: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """Exit code, output and error output of the command, in this process."""
    monkeypatch.setattr(sys, "argv", ["saga-dist", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capfd.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def imported_after(*arguments: str) -> set[str]:
    """Heavy modules that a command imported, in a process of its own."""
    script = (
        "import sys; sys.argv = ['saga-dist', *sys.argv[1:]]\n"
        "from saga_dist.cli import main as cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('MODULES', *sorted({'torch', 'ray', 'vllm', 'transformers', 'faiss'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=240, check=True, cwd=ROOT
    )
    return set(done.stdout.split("MODULES")[-1].split())


def test_help_and_dry_run_import_nothing_heavy() -> None:
    assert imported_after("--help") == set()
    assert imported_after("--version") == set()
    assert imported_after("train", "configs/birds.toml", "--dry-run") == set()


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.toml")), ids=lambda file: file.name)
def test_shipped_configs_parse(file: Path) -> None:
    assert load_config(file).run.steps > 0


HEAVY_COMMANDS = (
    "train CONFIG",
    "rollout CONFIG",
    "estimate CONFIG",
    "demo",
    "evaluate RUN",
    "export RUN --out out",
    "embed RUN images --out out.arrow",
    "index out.arrow --out index",
    "search index images/a.png",
    "report RUN",
    "rollouts RUN",
    "rollouts RUN --step 1",
    "watch RUN",
    "evidence show RUN",
    "evidence screen CONFIG",
    "bench replay",
    "check-gpu",
)
"""Commands that import torch, faiss or another heavy library."""


def test_no_command_imports_anything_heavy_before_it_says_what_it_waits_for(config_file: Path, tmp_path: Path) -> None:
    """The first wait of a command ends it here; what is imported by then is looked at in a process of its own."""
    for folder in ("images", "run/model", "index"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "images" / "a.png").touch()
    (tmp_path / "run" / "config.json").write_text("{}")
    places = {"CONFIG": str(config_file), "RUN": "run"}
    commands = [[places.get(word, word) for word in command.split()] for command in HEAVY_COMMANDS]
    script = (
        "import json, sys\n"
        "from saga_dist.cli import main as cli, progress\n"
        "class Waits(Exception): pass\n"
        "def waiting(what): raise Waits\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('saga_dist.cli') and hasattr(module, 'waiting'): module.waiting = waiting\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['saga-dist', *command]\n"
        "    try: cli.main()\n"
        "    except Waits: print(*sorted({'torch', 'ray', 'vllm', 'transformers', 'faiss'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(commands)], capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.stdout.splitlines() == [""] * len(HEAVY_COMMANDS), done.stdout + done.stderr


USAGE_MISTAKES = [
    (["tarin"], "error: saga-dist: no such command 'tarin'; did you mean 'train'?; see `saga-dist --help`"),
    (["train", "--nope"], "error: saga-dist train: no such option: --nope; see `saga-dist train --help`"),
    (["report"], "error: saga-dist report: missing argument 'RUN…'; see `saga-dist report --help`"),
    (["data", "chek"], "error: saga-dist data: no such command 'chek'"),
    (["scale", "run", "--wait", "long"], "error: saga-dist scale: invalid value for '--wait'"),
    (["bench", "nope"], "error: saga-dist bench: invalid value for '[NAME]': 'nope' is not one of 'all', 'replay'"),
    (["embed", "a", "b"], "error: saga-dist embed: missing option '--out'"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE_MISTAKES, ids=[" ".join(one[0]) for one in USAGE_MISTAKES])
def test_mistakes_in_the_arguments_are_one_line_and_exit_2(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output, errors = run_cli(*arguments, capfd=capfd, monkeypatch=monkeypatch)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith(message)


@pytest.mark.parametrize("group", [[], ["data"], ["evidence"]], ids=str)
def test_a_group_without_a_command_shows_its_help(
    group: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, errors = run_cli(*group, capfd=capfd, monkeypatch=monkeypatch)
    assert code == 2
    assert errors.startswith("Usage: saga-dist") and "Commands:" in errors


def test_every_command_answers_to_h(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"data": ["check"], "evidence": ["show", "screen", "collect"]}
    commands = [[], *([command.__name__.replace("_", "-")] for command in cli.COMMANDS), *([name] for name in groups)]
    commands += [[name, command] for name, inner in groups.items() for command in inner]
    for command in commands:
        texts = [run_cli(*command, option, capfd=capfd, monkeypatch=monkeypatch) for option in ("-h", "--help")]
        assert texts[0] == texts[1]
        assert texts[0][0] == 0 and texts[0][1].startswith(" ".join(["Usage: saga-dist", *command]))


def test_the_version_is_that_of_the_package(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_cli("--version", capfd=capfd, monkeypatch=monkeypatch)[:2] == (0, f"saga-dist {__version__}\n")
    module = subprocess.run([sys.executable, "-m", "saga_dist", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert module.stdout == f"saga-dist {__version__}\n"


def test_shells_complete_commands(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # a test process need not have a shell
    code, script, _ = run_cli("--show-completion", "bash", capfd=capfd, monkeypatch=monkeypatch)
    assert code == 0 and "complete -o default -F _saga_dist_completion saga-dist" in script
    asked = {"_SAGA_DIST_COMPLETE": "complete_bash", "COMP_WORDS": "saga-dist rep", "COMP_CWORD": "1"}
    program = [sys.executable, "-m", "saga_dist"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **asked})
    assert done.stdout.split() == ["report"]


MISTAKES = [
    (["objective.kl_layre=1"], r"unknown key objective.kl_layre; did you mean objective.kl_layer\?"),
    (["rollout.group_size=1"], "rollout.group_size = 1"),
    (["data.batch_size=9"], "batch_size = 9 is not divisible by images_per_class = 2"),
    (["optimizer.lr_encoder=fast"], "optimizer.lr_encoder = 'fast'"),
    (["optimizer.lr_encoder=-1.0"], "optimizer.lr_encoder = -1.0"),
    (["model.path=/nowhere/at/all"], "/nowhere/at/all: no such folder"),
    (["objective.kl_layer=99"], "objective.kl_layer = 99"),
    (["prompt.vocabulary=whales"], "prompt.vocabulary = 'whales'"),
    (["data.layout=folder", "data.root=/nowhere/at/all"], "/nowhere/at/all"),
    (["seed"], "override 'seed'"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[mistake[0][0] for mistake in MISTAKES])
def test_mistakes_are_one_line_and_exit_2(
    overrides: list[str],
    message: str,
    config_file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, _, errors = run_cli(
        "train", str(config_file), *overrides, "--run-dir", str(tmp_path / "run"), capfd=capfd, monkeypatch=monkeypatch
    )
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert code == 2
    assert "Traceback" not in errors
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]


def test_missing_and_unreadable_config(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[data\n")
    for file, message in ((tmp_path / "none.toml", "cannot read the file"), (broken, "not valid TOML")):
        code, _, errors = run_cli("train", str(file), capfd=capfd, monkeypatch=monkeypatch)
        assert code == 2
        assert errors.startswith(f"error: {file}: ")
        assert message in errors
        assert errors.count("\n") == 1


def test_wrong_family_is_refused_before_anything_is_loaded(
    tmp_path: Path, config_file: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    for extra in (["--dry-run"], ["--run-dir", str(tmp_path / "run")]):
        code, _, errors = run_cli(
            "train", str(config_file), f"model.path={folder}", *extra, capfd=capfd, monkeypatch=monkeypatch
        )
        assert code == 2
        assert "model family 'llama' is not supported; expected qwen3_vl" in errors.replace("one of ", "")


@pytest.mark.integration
def test_train_resume_and_the_mistakes_around_a_run_directory(
    tmp_path: Path, config_file: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"

    def train(*overrides: str) -> tuple[int, str, str]:
        return run_cli(
            "train", str(config_file), *overrides, "--run-dir", str(run_dir), capfd=capfd, monkeypatch=monkeypatch
        )

    code, output, _ = train()
    assert code == 0
    assert "pre-trained" in output
    assert {path.name for path in run_dir.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "rollouts",
        "checkpoints",
        "model",
        "results.json",
    }
    results = json.loads((run_dir / "results.json").read_text())
    assert [method["name"] for method in results["methods"]] == ["pre-trained", "trained"]
    assert results["backbone_unchanged"] is True

    code, output, _ = run_cli("evaluate", str(run_dir), capfd=capfd, monkeypatch=monkeypatch)
    assert code == 0
    recall = f"{100 * results['methods'][1]['splits']['test']['recall_at_1']:.1f}"
    assert recall in output  # the deployed encoder reaches what the trainer measured

    assert train()[0] == 0  # finished already: the same command ends at once
    code, _, errors = train("optimizer.lr_encoder=0.5")
    assert code == 2
    assert "optimizer.lr_encoder: 2e-05 != 0.5" in errors

    def damage(step: int) -> None:
        damaged = run_dir / "checkpoints" / f"step_{step:08d}" / "optimizer.safetensors"
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 0x10
        damaged.write_bytes(content)

    damage(2)
    assert train()[0] == 0  # from step 1, which is valid
    for step in (1, 2):
        damage(step)
    code, _, errors = train()
    assert code == 2
    assert "no checkpoint is valid" in errors
    assert "step_00000002/optimizer.safetensors: damaged checkpoint" in errors

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    run_dir = tmp_path / "full"
    code, _, errors = train()
    assert code == 2
    assert "holds files but no config.json" in errors


def test_terminal_escapes_in_a_message_are_shown_not_obeyed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, errors = run_cli("train", str(tmp_path / "\x1b[31mred.toml"), capfd=capfd, monkeypatch=monkeypatch)
    assert code == 2
    assert "\x1b" not in errors
    assert "\\x1b[31mred.toml" in errors


@pytest.mark.slow  # test_crash_points.py stops a command in the same way, and the command that resumes it too
def test_sigterm_writes_a_checkpoint_and_exits_3(tmp_path: Path, config_file: Path) -> None:
    command = [sys.executable, "-m", "saga_dist.cli.main", "train", str(config_file), "run.steps=100000"]
    command += ["evaluation.every_steps=100000", "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ})
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            if process.poll() is not None or (metrics.exists() and metrics.read_text().count("\n") > 1):
                break
            time.sleep(0.1)
        process.terminate()
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 3, output
    assert "the same command resumes" in output
    latest = (tmp_path / "run" / "checkpoints" / "latest").read_text().strip()
    last = json.loads(metrics.read_text().splitlines()[-1])
    assert latest == f"step_{last['step']:08d}"
