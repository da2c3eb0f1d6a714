"""Builds the environment of `make env` in .venv, or says at once that it is up to date.

Standard library only: this is what runs before there is an environment. Three layers, each with its own stamp:

packages   everything in docker/requirements-cpu.lock, exactly, without a resolver, and its bytecode.
           Built under another name and renamed when complete, so that an interrupted build leaves nothing that looks
           finished.
cache      with SAGA_ENV_CACHE=FOLDER the packages are built once for all clones, at FOLDER/<key>, and each clone gets
           hard links to the files: seconds instead of minutes, no second copy on the disk, and no clone can see
           another one's code. Do not edit such files in place; pip never does.
project    this clone, installed editable with the shim for packages built for CUDA (cpu_torch_shim.py), and bytecode.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK_FILE = ROOT / "docker" / "requirements-cpu.lock"
SHIM = (ROOT / "docker" / "cpu_torch_shim.py", ROOT / "docker" / "cpu_torch_shim.pth")
"""The shim for packages built for CUDA, and the line that starts it in every process; the wheel holds both too."""
VENV = ROOT / ".venv"
STAMP = "saga-env.json"
HOME_NOTE = "saga-home"
PIP_VERSION = "26.3"
KEPT_CACHES = 2
IMPORTS = (
    "faiss",
    "matplotlib.pyplot",
    "pyarrow",
    "pydantic",
    "pytest",
    "pytorch_metric_learning.losses",
    "ray.job_submission",
    "rich.progress",
    "sklearn.cluster",
    "torchvision",
    "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "typer",
    "vllm.v1.engine.llm_engine",
    "vllm.entrypoints.llm",
)
NOT_COMPILED = r"/(tests?|testing)/"
"""Folders of packages whose modules nobody imports here, and some of which are not for this Python."""
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}


def main() -> int:
    """Exit code: 0 when .venv is ready, 1 with one line otherwise."""
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        return _fail(f"this is python {platform.python_version()}; expected 3.11; run `make env PYTHON=python3.11`")
    want = {"packages": packages_key(), "project": project_key()}
    if read_stamp(VENV) == want:
        return 0
    start = time.monotonic()
    try:
        with locked(ROOT / ".venv.lock"):
            have = read_stamp(VENV)
            if have.get("packages") != want["packages"]:
                place_packages(want["packages"])
            if have != want:
                install_project()
                write_stamp(VENV, want)
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        return _fail(f"`{command}` ended with exit code {error.returncode}; its reason stands above")
    except OSError as error:
        return _fail(f"{error}")
    _say(f"ready in {time.monotonic() - start:.0f} s: {VENV.relative_to(ROOT)}")
    return 0


def packages_key() -> str:
    """Names the packages layer: the lock file, what is compiled, the shim's files, this Python and this platform."""
    built = "\0".join((*IMPORTS, NOT_COMPILED, *(path.name for path in SHIM)))
    parts = [LOCK_FILE.read_text(), PIP_VERSION, built, platform.python_version(), sys.platform, platform.machine()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def project_key() -> str:
    """Names the project layer: what the editable install and the shim are made from, and where this clone lies."""
    parts = [(ROOT / "pyproject.toml").read_text(), *(path.read_text() for path in SHIM), str(ROOT)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def place_packages(key: str) -> None:
    """Put a complete packages layer at .venv, whatever lay there before."""
    new, old = ROOT / ".venv.new", ROOT / ".venv.old"
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    cache = os.environ.get("SAGA_ENV_CACHE", "")
    if cache:
        link_tree(cached_packages(Path(cache).expanduser().resolve(), key), new)
    else:
        build_packages(new)
    relocate(new, VENV)
    write_stamp(new, {"packages": key})
    if VENV.is_symlink():
        VENV.unlink()
    elif VENV.exists():
        VENV.rename(old)
    new.rename(VENV)
    shutil.rmtree(old, ignore_errors=True)


def cached_packages(cache: Path, key: str) -> Path:
    """The folder of the cache that holds the packages of ``key``, built now if need be."""
    cache.mkdir(parents=True, exist_ok=True)
    ready = cache / key
    with locked(cache / "lock"):
        if not ready.is_dir():
            building = cache / "building"
            build_packages(building)
            relocate(building, ready)
            building.rename(ready)
        os.utime(ready)
        by_age = sorted((path for path in cache.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
        for stale in by_age[:-KEPT_CACHES]:
            shutil.rmtree(stale, ignore_errors=True)  # clones keep their links
    return ready


def build_packages(folder: Path) -> None:
    """Make a virtual environment at ``folder`` that holds exactly the lock file."""
    pins = [line for line in LOCK_FILE.read_text().splitlines() if line and not line.startswith("#")]
    _say(f"installing {len(pins)} packages, one to two minutes where the network is quick")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--prompt", "saga-dist", folder], check=True)
    pip_install(folder, f"pip=={PIP_VERSION}")
    (torch,) = [pin for pin in pins if pin.startswith("torch==")]
    pip_install(folder, "--no-deps", torch)
    build = runpy.run_path(str(site_packages(folder) / "torch" / "version.py"))
    if sys.platform == "linux" and (build.get("cuda") or build.get("hip")):
        raise OSError(
            f"the package index gave {torch} as a build for GPUs ({build['__version__']}), and this environment is the "
            "CPU one; add PyTorch's index of CPU wheels (see its installation page) with PIP_EXTRA_INDEX_URL and run "
            "`make env` again"
        )
    # The lock is complete, so nothing is resolved. Three packages that others list are left out on purpose: torchaudio
    # and torchcodec, whose registry builds need CUDA libraries and which transformers imports where it finds them, and
    # triton, a gigabyte without a CPU backend.
    pip_install(folder, "--no-deps", "-r", LOCK_FILE)
    install_shim(folder)
    compile_folder(folder, site_packages(folder))
    check_imports(folder)


def compile_folder(venv: Path, folder: Path) -> None:
    """Write the bytecode of every module below ``folder``, on all cores.

    Python writes bytecode as it imports, unless PYTHONDONTWRITEBYTECODE is set: then every process compiles anew what
    it imports, 8 to 15 seconds of its time. compileall writes it whatever that variable says. A file that does not
    compile, of a package for several Pythons, is left out.
    """
    command = [str(venv / "bin" / "python"), "-m", "compileall", "-q", "-j", "0", "-x", NOT_COMPILED, str(folder)]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def check_imports(venv: Path) -> None:
    """Show that the packages of ``venv`` import."""
    command = [str(venv / "bin" / "python"), "-c", f"import {', '.join(IMPORTS)}"]
    subprocess.run(command, check=True, cwd=venv, stdout=subprocess.DEVNULL, env=os.environ | QUIET)


def install_project() -> None:
    """Install this clone (editable), the shim with it, into .venv."""
    relocate(VENV, VENV)  # the clone may have been moved since
    pip_install(VENV, "--no-deps", "--no-build-isolation", "--editable", ROOT)
    compile_folder(VENV, ROOT / "saga_dist")


def install_shim(venv: Path) -> None:
    """Put the shim for packages built for CUDA into ``venv``."""
    for path in SHIM:
        replace(site_packages(venv) / path.name, path.read_bytes())


def pip_install(venv: Path, *arguments: str | Path) -> None:
    """Run the environment's own pip, errors only."""
    options = ["-qq", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([venv / "bin" / "python", "-m", "pip", "install", *options, *arguments], check=True, cwd=ROOT)


def site_packages(venv: Path) -> Path:
    """Where ``venv`` keeps its packages."""
    return venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def relocate(venv: Path, home: Path) -> None:
    """Make ``venv`` one that works at ``home``: its scripts are the only files that name the folder."""
    note = venv / HOME_NOTE
    was = note.read_text() if note.exists() else str(venv)
    for path in [venv / "pyvenv.cfg", *(venv / "bin").iterdir()]:
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if was.encode() in content:
            replace(path, content.replace(was.encode(), str(home).encode()))
    replace(note, str(home).encode())


def link_tree(source: Path, target: Path) -> None:
    """Hard-link ``source`` as ``target``; across file systems, copy."""

    def link(file: str, to: str) -> None:
        try:
            os.link(file, to)
        except OSError:
            shutil.copy2(file, to)

    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True, copy_function=link)


def replace(path: Path, content: bytes) -> None:
    """Write ``content`` as a new file in place of ``path``: a hard-linked old file stays what it was elsewhere."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    if path.exists():
        shutil.copymode(path, temporary)
    temporary.replace(path)


def read_stamp(venv: Path) -> dict[str, str]:
    """The stamp of ``venv``; empty where there is none that can be read, or its Python is gone."""
    try:
        stamp = json.loads((venv / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and (venv / "bin" / "python").exists() else {}


def write_stamp(venv: Path, stamp: dict[str, str]) -> None:
    """Say that ``venv`` is complete."""
    replace(venv / STAMP, json.dumps(stamp).encode())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``path`` for this process alone; the kernel lets go of it when the process ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another build (it holds {path})")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(message: str) -> None:
    print(f"env: {message}", flush=True)


def _fail(message: str) -> int:
    print(f"env: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
