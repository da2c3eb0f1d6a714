"""The built wheel in an empty directory: every command finds what it needs, without a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, as an installation has it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*build, "--wheel-dir", folder, ROOT], check=True, timeout=300)
    (wheel,) = folder.glob("saga_dist-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, here: Path, *arguments: str) -> str:
    """Returns the standard output of ``python`` with the installed package, started in the folder ``here``."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_is_that_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "from saga_dist.utils.shipped import shipped_folder; print(shipped_folder())"
    assert run(installed, tmp_path, "-c", code).strip() == str(installed / "saga_dist" / "shipped")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("--version", "saga-dist 0.1.0"),
        ("train birds --dry-run", "the configuration is valid"),
        ("train configs/birds.toml --dry-run", "the configuration is valid"),
        ("train evidence/h --dry-run", "the configuration is valid"),
        ("sweep configs/tables/birds.toml --dry-run", "cells"),
        ("sweep birds --dry-run", "cells"),
        ("manifest sop data.root=/data/sop", "product specialist"),
    ],
)
def test_commands_work_in_an_empty_directory(command: str, says: str, installed: Path, tmp_path: Path) -> None:
    assert says in run(installed, tmp_path, "-m", "saga_dist", *command.split())
    assert list(tmp_path.iterdir()) == []


def test_the_screen_finds_its_worlds(installed: Path, tmp_path: Path) -> None:
    code = "from saga_dist.diagnostics.screen_configs import load_worlds; print(*(one.name for one in load_worlds([])))"
    worlds = [path.stem for path in sorted((ROOT / "configs" / "evidence").glob("*.toml")) if "table" not in path.name]
    assert run(installed, tmp_path, "-c", code).split() == worlds


def test_a_configuration_of_ones_own_is_written_and_valid(installed: Path, tmp_path: Path) -> None:
    for name in ("owl", "wren"):
        (tmp_path / "images" / name).mkdir(parents=True)
    run(installed, tmp_path, "-m", "saga_dist", "init", "mine", "--data", "images")
    code = "from saga_dist.config import load_config; print(load_config('mine').data.root)"
    assert run(installed, tmp_path, "-c", code).strip() == str(tmp_path / "images")


def test_an_installed_wheel_starts_the_shim_in_every_process(installed: Path, tmp_path: Path) -> None:
    code = f"import site, sys; site.addsitedir({str(installed)!r}); print('cpu_torch_shim' in sys.modules)"
    assert run(installed, tmp_path, "-S", "-c", code).strip() == "True"
