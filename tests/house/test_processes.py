"""How ``pytest -n 2`` distributes the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
TEST_FILE = """
import os, time
from pathlib import Path

import pytest

{marker}
@pytest.mark.parametrize("number", range(3))
def test_something(number):
    with Path("{name}.processes").open("a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + " ")
    time.sleep(0.1)
"""


@pytest.mark.integration
def test_files_that_start_ray_share_one_process_and_other_files_stay_whole(tmp_path: Path) -> None:
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    cluster: starts Ray\n")
    for name, marker in (("a", ""), ("b", "@pytest.mark.cluster"), ("c", ""), ("d", "@pytest.mark.cluster")):
        (tmp_path / f"test_{name}.py").write_text(TEST_FILE.format(name=name, marker=marker))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert "12 passed" in done.stdout, done.stdout + done.stderr
    processes = {name: set((tmp_path / f"{name}.processes").read_text().split()) for name in "abcd"}
    assert processes["b"] == processes["d"]
    assert [len(found) for found in processes.values()] == [1, 1, 1, 1]
    assert set.union(*processes.values()) == {"gw0", "gw1"}
