"""The command check-gpu: sections in processes of their own, time caps, one line for each."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from saga_dist.cli.main import app
from saga_dist.diagnostics.gpu_check import runner, sections
from saga_dist.diagnostics.gpu_check.isolation import Outcome, run_isolated
from saga_dist.diagnostics.gpu_check.sections import SECTIONS, CheckSection, chosen_sections
from saga_dist.diagnostics.gpu_check.sizes import GIB, size_for
from saga_dist.errors import ConfigError, SagaError

ROOT = Path(__file__).resolve().parents[2]
TOYS = """
import os, signal, subprocess, sys, time

from saga_dist.diagnostics.gpu_check.skipping import SectionSkipped
from saga_dist.errors import ConfigError

def answers(size):
    return {"size": size, "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF")}

def prints(size):
    print("noise of Python", flush=True)
    os.write(1, b"noise of a library\\n")
    return {"one": 1.5}

def sleeps(size):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("child", child.pid, flush=True)
    time.sleep(600)

def raises(size):
    raise RuntimeError("CUDA out of memory\\nTried to allocate 20 GiB")

def mistaken(size):
    raise ConfigError("key = 3", expected="2")

def skips(size):
    raise SectionSkipped("no engine here")

def dies(size):
    os.kill(os.getpid(), signal.SIGSEGV)

def leaves(size):
    os._exit(7)

def lingers(size):
    import threading
    threading.Thread(target=time.sleep, args=(600,)).start()
    return {"one": 1}

def many(size):
    return {"numbers": list(range(50_000))}

def nan(size):
    return {"loss": float("nan")}

def objects(size):
    return {"path": object()}
"""


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CheckSection]:
    """Makes sections of the functions above."""
    (tmp_path / "toys.py").write_text(TOYS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)

    def make(name: str, *, cap_s: float = 60, **rest: Any) -> CheckSection:
        return CheckSection(name, f"toys:{name}", cap_s, **rest)

    return make


def outcome_of(name: str, tmp_path: Path, *, cap_s: float = 60) -> Outcome:
    return run_isolated(f"toys:{name}", "tiny", cap_s=cap_s, log=tmp_path / "log")


# ---------------------------------------------------------------- isolation


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises", "RuntimeError: CUDA out of memory Tried to allocate 20 GiB"),
        ("mistaken", "key = 3; expected 2"),
        ("dies", "its process was ended by SIGSEGV; see "),
        ("leaves", "its process ended with exit code 7 and no answer; see "),
        ("nan", "ValueError: Out of range float values are not JSON compliant"),
        ("objects", "TypeError: Object of type object is not JSON serializable"),
        ("absent", "section: 'toys:absent': toys has no 'absent'; check the name"),
    ],
)
def test_a_failure_is_one_line(name: str, says: str, toys: Any, tmp_path: Path) -> None:
    outcome = outcome_of(name, tmp_path)
    assert outcome.error.startswith(says)
    assert "\n" not in outcome.error
    assert (outcome.results, outcome.skipped) == ({}, "")


def test_a_process_is_ended_at_its_cap_with_its_children(toys: Any, tmp_path: Path) -> None:
    outcome = outcome_of("sleeps", tmp_path, cap_s=3)
    assert outcome.error == f"stopped at its time cap of 3 s; see {tmp_path / 'log'}"
    assert 3 <= outcome.seconds < 60
    child = int((tmp_path / "log").read_text().split()[1])
    deadline = time.monotonic() + 30
    while not has_ended(child) and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel ends a killed process when it is scheduled next
    assert has_ended(child)


def has_ended(pid: int) -> bool:
    """Returns True for a process that is gone or waits for its parent to read its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_what_libraries_print_goes_to_the_log(toys: Any, tmp_path: Path) -> None:
    outcome = outcome_of("prints", tmp_path)
    assert outcome.results == {"one": 1.5}
    assert (tmp_path / "log").read_text() == "noise of Python\nnoise of a library\n"


def test_a_thread_that_never_ends_and_a_long_answer_lose_nothing(toys: Any, tmp_path: Path) -> None:
    assert outcome_of("lingers", tmp_path, cap_s=30).results == {"one": 1}
    assert outcome_of("many", tmp_path).results == {"numbers": list(range(50_000))}


def test_a_skipped_section_is_no_failure(toys: Any, tmp_path: Path) -> None:
    assert (outcome_of("skips", tmp_path).skipped, outcome_of("skips", tmp_path).error) == ("no engine here", "")


@pytest.mark.parametrize(
    ("theirs", "environment", "expected"),
    [
        (None, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, "expandable_segments:True"),
        (None, {}, None),
        ("max_split_size_mb:64", {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, "max_split_size_mb:64"),
    ],
)
def test_a_sections_environment_yields_to_the_users(
    theirs: str | None,
    environment: dict[str, str],
    expected: str | None,
    toys: Callable[..., CheckSection],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if theirs is not None:
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", theirs)
    check = runner.CheckRun("tiny", tmp_path, limit_s=60)
    found = check.run(toys("answers", environment=environment)).outcome
    assert found.results == {"size": "tiny", "allocator": expected}


# ---------------------------------------------------------------- the runner


def test_sections_after_a_failure_run_and_each_has_a_line(toys: Callable[..., CheckSection], tmp_path: Path) -> None:
    check = runner.CheckRun("tiny", tmp_path, limit_s=60)
    lines = [check.run(toys(name)).as_json() for name in ("answers", "raises", "skips", "prints")]
    assert [set(line) - {"section", "size", "seconds"} for line in lines] == [
        {"results"}, {"error"}, {"skipped"}, {"results"}
    ]  # fmt: skip
    assert [line["section"] for line in lines] == ["answers", "raises", "skips", "prints"]
    assert all(line["seconds"] > 0 and line["size"] == "tiny" for line in lines)
    assert [json.loads(line) for line in (tmp_path / runner.RESULTS_NAME).read_text().splitlines()] == lines
    assert [result.failed for result in check.results] == [False, True, False, False]
    assert (tmp_path / "raises.log").read_text().count("Traceback") == 1


def test_the_minutes_end_the_last_section_and_skip_the_rest(toys: Callable[..., CheckSection], tmp_path: Path) -> None:
    check = runner.CheckRun("tiny", tmp_path, limit_s=3)
    first, second = (check.run(toys(name)) for name in ("sleeps", "answers"))
    assert first.outcome.error.startswith("stopped at its time cap of 3 s")
    assert second.outcome.skipped == "no time left of 0.05 minutes; raise --minutes, or choose --sections"


def test_sections_are_chosen_in_their_own_order() -> None:
    assert chosen_sections("") == SECTIONS
    assert [section.name for section in chosen_sections("replay, environment")] == ["environment", "replay"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("replai", "no section 'replai'; expected some of environment, .*; did you mean replay?"),
        ("replay,", "no section ''"),
        ("replay,replay", "replay is named twice"),
    ],
)
def test_a_mistaken_list_of_sections_is_one_line(names: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"--sections: {says}"):
        chosen_sections(names)


def test_every_section_is_a_function_and_they_differ() -> None:
    from saga_dist.utils.registry import import_object

    assert all(callable(import_object(section.function, key="section")) for section in SECTIONS)
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)
    grown = {section.name: "PYTORCH_CUDA_ALLOC_CONF" in section.environment for section in SECTIONS}
    assert [name for name, wanted in grown.items() if not wanted] == ["memory_fixed_segments", "engine"]
    assert callable(import_object(runner.MEMORY_FUNCTION, key="memory"))


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("memory", "expected"), [(0, "tiny"), (8, "tiny"), (24, "2b"), (44.4, "4b"), (79.1, "8b"), (139.7, "8b")]
)
def test_the_size_follows_the_memory(memory: float, expected: str) -> None:
    assert size_for(int(memory * GIB)) == expected


def answer(monkeypatch: pytest.MonkeyPatch, gpus: int | None, outcome: Outcome) -> None:
    monkeypatch.setattr(runner, "visible_gpus", lambda: gpus)
    monkeypatch.setattr(runner, "run_isolated", lambda *_, **__: outcome)


def test_the_size_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer(monkeypatch, 1, Outcome(1.0, {"bytes": 80 * GIB}))
    assert runner.choose_size("auto", tmp_path) == "8b"
    assert runner.choose_size("2b", tmp_path) == "2b"
    answer(monkeypatch, None, Outcome(1.0, {"bytes": 0}))
    assert runner.choose_size("auto", tmp_path) == "tiny"
    answer(monkeypatch, 0, Outcome(1.0, error="must not be asked"))
    assert runner.choose_size("auto", tmp_path) == "tiny"


def test_a_gpu_that_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer(monkeypatch, 1, Outcome(1.0, {"bytes": 0}))
    with pytest.raises(ConfigError, match="there is a GPU, and torch cannot use it; expected torch for CUDA"):
        runner.choose_size("auto", tmp_path)
    answer(monkeypatch, 1, Outcome(60.0, error="stopped at its time cap of 60 s"))
    with pytest.raises(SagaError, match="the GPU does not answer: stopped at its time cap of 60 s; see nvidia-smi"):
        runner.choose_size("auto", tmp_path)


# ---------------------------------------------------------------- the command


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["check-gpu", *arguments])


def test_the_command_prints_a_line_for_each_section_and_fails_with_one(
    toys: Callable[..., CheckSection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "chosen_sections", lambda names: [toys("answers"), toys(names)])
    done = invoke("--sections", "skips", "--out", "first", "--size", "tiny")
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["section"] for line in done.stdout.splitlines()] == ["answers", "skips", "rates"]
    assert json.loads(done.stdout.splitlines()[-1])["file"] is None
    done = invoke("--sections", "raises", "--out", "second", "--size", "tiny")
    assert done.exit_code == 1
    assert "CUDA out of memory" in json.loads(done.stdout.splitlines()[1])["error"]
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == [
        "answers.log", "raises.log", "results.jsonl"
    ]  # fmt: skip


@pytest.mark.integration
def test_on_a_machine_without_a_gpu_the_tiny_form_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "out"
    done = invoke("--sections", "environment,replay", "--out", str(out))
    assert done.exit_code == 0, done.output
    first, second, last = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["size"], first["results"]["device"]) == ("tiny", "cpu")
    assert second["results"]["packed"]["second_s"] > 0
    assert last["file"] == str(out / "rates.json")
    rates = json.loads((out / "rates.json").read_text())["rates"]
    assert rates["replay"]["value"] == second["results"]["flops_per_s"]
    assert rates["replay"]["source"].startswith("measured: saga-dist check-gpu on cpu, random weights of a tiny model")
