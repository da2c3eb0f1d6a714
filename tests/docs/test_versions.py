"""docs/versions.md and the two lock files agree with each other and with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "versions.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def lock(name: str) -> dict[str, str]:
    """Returns package to version of a lock file."""
    lines = (ROOT / "docker" / f"requirements-{name}.lock").read_text("utf-8").splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(package): version for package, version in pins}


CPU, GPU = lock("cpu"), lock("gpu")


def test_the_table_has_the_versions_of_the_lock_files() -> None:
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+)(?: \(`([\w-]+)`\))? \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert {"torch", "vllm", "ray", "transformers"} <= {package for package, *_ in rows}
    for package, cpu, cpu_package, gpu in rows:
        assert (cpu, gpu) == (CPU[cpu_package or package], GPU[package]), package


def test_lock_files_hold_what_the_package_asks_for() -> None:
    extras = PROJECT["optional-dependencies"]
    for pins, names in ((CPU, ["cpu", "docs", "export", "lora", "timm", "test"]), (GPU, ["gpu", "lora"])):
        for text in (*PROJECT["dependencies"], *(one for name in names for one in extras[name])):
            wanted = Requirement(text)
            assert pins[canonicalize_name(wanted.name)] in wanted.specifier, text


def test_both_environments_have_the_same_versions_where_both_have_a_package() -> None:
    differing = {name for name in CPU.keys() & GPU.keys() if CPU[name] != GPU[name]}
    assert differing <= {"anthropic", "apache-tvm-ffi", "llvmlite", "numba", "openai", "setuptools", "xgrammar"}


def test_the_gpu_lock_file_is_for_cuda_and_the_cpu_one_is_not() -> None:
    assert "triton" in GPU and any(name.startswith("nvidia-cublas") for name in GPU)
    assert "triton" not in CPU and not any(name.startswith("nvidia-") for name in CPU)
