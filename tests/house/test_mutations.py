"""Every term of the objectives and of sampling, and what users rely on, is held by a test: a change makes one fail.

A row of ``mutations.py`` is one change of one place, and the test files that must notice it. The files are run on an
unchanged copy first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from house.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, whose tests pass."""
    place = tmp_path_factory.mktemp("mutations") / "copy"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name)
    files = sorted({name for mutation in MUTATIONS for name in mutation.tests.split()})
    done = run_tests(place, files)
    assert done.returncode == 0, done.stdout[-3000:]
    return place


def run_tests(place: Path, files: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs test files of a copy, against the package of that copy."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, *(f"tests/{name}" for name in files)],
        cwd=place, env=environment, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.term)
def test_a_changed_term_makes_a_test_fail(copy: Path, mutation: Mutation) -> None:
    module = copy / "saga_dist" / mutation.path
    text = module.read_text("utf-8")
    module.write_text(text.replace(mutation.old, mutation.new), "utf-8")
    try:
        done = run_tests(copy, mutation.tests.split())
    finally:
        module.write_text(text, "utf-8")
    assert done.returncode == 1, f"no test of {mutation.tests} noticed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.term)
def test_every_row_names_one_place(mutation: Mutation) -> None:
    text = (ROOT / "saga_dist" / mutation.path).read_text("utf-8")
    assert text.count(mutation.old) == 1
    assert all((ROOT / "tests" / name).is_file() for name in mutation.tests.split())
