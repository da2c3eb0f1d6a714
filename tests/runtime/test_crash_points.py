"""Kill a run anywhere, type the same command again: weights, optimizer and all it leaves are those of a quiet run.

``crash_driver.py`` does the running and dying; it also lists the points, so the long test visits all that there are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saga_dist.checkpoint import CheckpointStore

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 240.0
KILLED = -signal.SIGKILL


SECTIONS: dict[str, dict[str, Any]] = {
    "run": {"steps": 5},
    "model": {"device": "cpu"},
    "rollout": {
        "max_log_prob_gap": 1e9,  # scripted rollouts know nothing of the model
        "group_size": 3,
        "contributing_groups": 2,
        "max_micro_batches": 2,
        "max_tokens": 120,
    },
    "runtime": {"threads": 1},
    "checkpoint": {"every_steps": 2, "keep": 1},
    "evaluation": {"every_steps": 2, "bootstrap_resamples": 100},
}

SOME_POINTS = (
    "after:AdamW.step@4",
    "torn:metrics.jsonl@4",
    "uploaded:step_00000004",
)
"""A few of the points; the slow test takes all of them."""


class Driver:
    """The other end of ``crash_driver.py``."""

    def __init__(self, config: Path, folder: Path) -> None:
        self._config, self._log = config, folder / "log"
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "runtime" / "crash_driver.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def train(self, place: Path, *, crash: str = "", trace: Path | None = None, kill_after_s: float = 0.0) -> int:
        """Exit code of the train command whose run directory and mirror lie in ``place``."""
        order = {
            "arguments": [
                "train",
                str(self._config),
                "--run-dir",
                str(place / "run"),
                f"checkpoint.mirror=file://{place}/mirror",
            ],
            "crash": crash,
            "trace": str(trace or ""),
            "kill_after_s": kill_after_s,
            "deadline_s": DEADLINE_S,
            "log": str(self._log),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())["code"]

    def last_words(self) -> str:
        return self._log.read_text()[-2000:]

    def close(self) -> None:
        try:
            self._process.communicate(timeout=30)  # the end of its input ends it
        finally:
            self._process.kill()


@pytest.fixture(scope="module")
def config(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, write_tiny_config: Callable[..., Path]
) -> Path:
    return write_tiny_config(tmp_path_factory.mktemp("crash") / "tiny.toml", tiny_checkpoint, **SECTIONS)


@pytest.fixture(scope="module")
def driver(config: Path) -> Iterator[Driver]:
    running = Driver(config, config.parent)
    yield running
    running.close()


@pytest.fixture(scope="module")
def quiet(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbs, and the crash points that it passed (``points``)."""
    place = tmp_path_factory.mktemp("quiet")
    assert driver.train(place, trace=place / "points") == 0, driver.last_words()
    rows = metric_rows(place / "run")
    assert sum("loss/dml" in row for row in rows) == 5
    assert all(row["replay/tokens"] > 0 for row in rows if "loss/dml" in row), "replay had work in every step"
    return place


def metric_rows(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith(("_s", "idle_share"))} for row in rows]


def without_time(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: without_time(value) for name, value in tree.items() if not name.endswith(("_s", "idle_share"))}
    return [without_time(value) for value in tree] if isinstance(tree, list) else tree


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def left_by(place: Path) -> dict[str, Any]:
    """Everything that a run leaves but measured times: sha256 of weights, optimizer, encoder, recordings; numbers."""
    run = place / "run"
    (mirror,) = (place / "mirror").iterdir()
    return {
        "checkpoints": digests(run / "checkpoints"),
        "mirror": digests(mirror),
        "model": digests(run / "model"),
        "rollouts": digests(run / "rollouts"),
        "metrics": metric_rows(run),
        "results": without_time(json.loads((run / "results.json").read_text())),
        "files": sorted(path.name for path in run.iterdir()),
    }


def differences(place: Path, quiet: Path) -> list[str]:
    """Names of what differs from the quiet run: none, and the weights' sha256 are among what is compared."""
    found, expected = left_by(place), left_by(quiet)
    names = {"step_00000005/learner.safetensors", "step_00000005/optimizer.safetensors"}
    assert names <= expected["checkpoints"].keys()
    assert expected["mirror"] == expected["checkpoints"]
    return [name for name in expected if found[name] != expected[name]]


@pytest.mark.parametrize("point", SOME_POINTS)
def test_the_same_command_after_a_kill_gives_the_same_bits(
    driver: Driver, quiet: Path, tmp_path: Path, point: str
) -> None:
    assert driver.train(tmp_path, crash=point) == KILLED, driver.last_words()
    assert driver.train(tmp_path) == 0, driver.last_words()
    assert differences(tmp_path, quiet) == []


def test_a_resume_may_be_killed_too(driver: Driver, quiet: Path, tmp_path: Path) -> None:
    points = (
        "written:config.json",  # nothing is there yet but half a file
        "written:best",
        "after:Learner.load",
        "written:metrics.jsonl",
        "doomed:step_00000004",
        "renamed:results.json",
    )
    for point in points:
        assert driver.train(tmp_path, crash=point) == KILLED, driver.last_words()
    assert driver.train(tmp_path) == 0, driver.last_words()
    assert differences(tmp_path, quiet) == []


def test_a_new_cluster_goes_on_from_the_mirror(driver: Driver, quiet: Path, tmp_path: Path) -> None:
    assert driver.train(tmp_path, crash="before:Learner.finish_step@4") == KILLED, driver.last_words()
    shutil.rmtree(tmp_path / "run")
    assert driver.train(tmp_path, crash="downloaded:step_00000002") == KILLED, driver.last_words()
    assert driver.train(tmp_path) == 0, driver.last_words()
    assert not (tmp_path / "run" / "rollouts" / "step_000002.arrow").exists(), "steps 1 and 2 were not done again"
    assert set(differences(tmp_path, quiet)) <= {"metrics", "rollouts", "results"}
    assert metric_rows(tmp_path / "run") == [row for row in metric_rows(quiet / "run") if row["step"] > 2]
    # The ledger of steps 1 and 2 was lost with the run directory, so the number of images is not known.
    found, expected = (left_by(place)["results"]["methods"] for place in (tmp_path, quiet))
    assert found[1]["training"].pop("images_seen") is None
    assert expected[1]["training"].pop("images_seen") > 0
    assert found == expected


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_crash_point(driver: Driver, quiet: Path, tmp_path: Path) -> None:
    """Each point that a run passes, in the middle of its visits; and those that only the same command again passes."""
    visits = Counter((quiet / "points").read_text().split("\n"))
    points = [f"{point}@{(count + 1) // 2}" for point, count in visits.items()]
    assert len(points) >= 60
    again = tmp_path / "again"
    shutil.copytree(quiet, again)
    shutil.rmtree(again / "mirror")  # as if it had been set later: the resume uploads what is there
    wrong: dict[str, Any] = {}
    for number, point in enumerate(points):
        place = tmp_path / str(number)
        place.mkdir()
        codes = driver.train(place, crash=point), driver.train(place)
        different = differences(place, quiet) if codes == (KILLED, 0) else ["not compared"]
        if different:
            wrong[point] = codes, different
        shutil.rmtree(place)
    assert driver.train(again, trace=again / "points") == 0, driver.last_words()
    only_again = set((again / "points").read_text().split("\n")) - visits.keys()
    assert only_again >= {"written:metrics.jsonl", "doomed:model"}
    assert len(points) + len(only_again) >= 75
    for point in sorted(only_again):
        codes = driver.train(again, crash=point), driver.train(again)
        different = differences(again, quiet) if codes == (KILLED, 0) else ["not compared"]
        if different:
            wrong[point] = codes, different
    assert wrong == {}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_kills_at_random_times(driver: Driver, quiet: Path, tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for delay_s in generator.uniform(0.2, 2.5, size=5):
        if driver.train(tmp_path, kill_after_s=float(delay_s)) == 0:
            break
    assert driver.train(tmp_path) == 0, driver.last_words()
    assert differences(tmp_path, quiet) == []


# ---------------------------------------------------------------------- real processes


LONG = (("run", "steps"), ("checkpoint", "every_steps"), ("evaluation", "every_steps"))


def command(config: Path, run: Path, *overrides: str) -> list[str]:
    settings = ["rollout.max_tokens=8", *overrides]
    return [sys.executable, "-m", "saga_dist.cli.main", "train", str(config), *settings, "--run-dir", str(run)]


@pytest.mark.slow
def test_the_variable_kills_a_real_command(config: Path, tmp_path: Path) -> None:
    for variable, code in (("committed:step_00000002", KILLED), ("committed:step_00000002", 0)):
        done = subprocess.run(
            command(config, tmp_path / "run"),
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=DEADLINE_S,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SAGA_DIST_CRASH_AT": variable},
        )
        assert done.returncode == code, done.stderr
        newest = CheckpointStore(tmp_path / "run" / "checkpoints", keep=1).newest()
        assert newest is not None
        assert newest.step == (2 if code else 5)  # the second time the point is not passed: step 2 is done


def test_sigterm_saves_and_exits_with_its_own_code(config: Path, tmp_path: Path) -> None:
    metrics, steps = tmp_path / "run" / "metrics.jsonl", []
    for _ in range(2):
        known = metrics.stat().st_size if metrics.exists() else 0
        process = subprocess.Popen(
            command(
                config, tmp_path / "run", "run.steps=3000", "checkpoint.every_steps=3000", "evaluation.every_steps=3000"
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not metrics.exists() or metrics.stat().st_size <= known:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, "no step in time"
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
        assert process.returncode == 3, errors
        newest = CheckpointStore(tmp_path / "run" / "checkpoints", keep=1).newest()
        assert newest is not None
        assert newest.step == metric_rows(tmp_path / "run")[-1]["step"]
        assert f"error: stopped after step {newest.step}; the same command resumes" in errors
        steps.append(newest.step)
    assert "resumed from" in errors
    assert steps[1] > steps[0] >= 1
    assert [row["step"] for row in metric_rows(tmp_path / "run")] == list(range(1, steps[1] + 1))
