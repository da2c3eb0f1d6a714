"""Holds the order of the house: who may import whom, and which module may touch which heavy library."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "saga_dist"

# Top-level names of saga_dist, lowest first. A module imports from its own line and from those before it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("types", "errors", "protocols", "utils"),
    (
        "config",
        "objectives",
        "data",
        "models",
        "wire",
        "checkpoint",
        "retrieval",
        "standin",
        "export",
        "deploy",
    ),
    ("workers",),
    ("metrics",),
    ("training",),
    ("runtime",),
    ("baselines", "sweep", "estimate", "diagnostics", "report", "bench", "testing"),
    ("api",),
    ("cli", "__main__"),
)
MOST_MODULES, MOST_PACKAGES = 8, 23

# Heavy library -> the files (or folders, with a slash at the end) that may import it.
HOMES: dict[str, tuple[str, ...]] = {
    "ray": ("runtime/ray/",),
    "vllm": ("workers/engines/vllm_engine.py", "workers/engines/vllm_requests.py"),
    "pyarrow": (
        "wire/",
        "runtime/ray/",
        "checkpoint/mirror.py",
        "data/layouts/manifest.py",
        "data/layouts/hf_dataset.py",
        "retrieval/tables.py",
    ),
    "faiss": ("retrieval/",),
    "jinja2": ("report/page.py",),
    "tensorboard": ("metrics/sinks/tensorboard_sink.py",),
    "wandb": ("metrics/sinks/wandb_sink.py",),
    "mlflow": ("metrics/sinks/mlflow_sink.py",),
    "timm": ("baselines/timm_encoder.py",),
    "pillow_heif": ("data/formats.py",),
}

PRINTERS = ("cli/main.py",)

HEAVY = {"torch", "ray", "vllm", "transformers", "faiss", "pyarrow", "sklearn", "matplotlib"}


class Module:
    """One file of the package: its dotted name and what it imports, wherever in the file the import stands."""

    def __init__(self, path: Path) -> None:
        self.path = path.relative_to(PACKAGE).as_posix()
        parts = path.relative_to(ROOT).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        self.imports = {(node.lineno, name) for node in ast.walk(self.tree) for name in _imported(node)}
        self.at_import_time = {name for node in _executed_on_import(self.tree) for name in _imported(node)}

    def __repr__(self) -> str:
        return self.path


def _imported(node: ast.AST) -> list[str]:
    """Full names that an import statement may load; ``from a import b`` may mean module a or module a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"relative import in line {node.lineno}"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _executed_on_import(node: ast.AST) -> list[ast.AST]:
    """Nodes that run when the module is imported: no function bodies, no ``if TYPE_CHECKING:`` blocks."""
    found: list[ast.AST] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            found += [inner for other in child.orelse for inner in [other, *_executed_on_import(other)]]
            continue
        found += [child, *_executed_on_import(child)]
    return found


MODULES = [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]
NAMES = {module.name for module in MODULES}
LINE_OF = {name: line for line, names in enumerate(LAYERS) for name in names}


def top_level(name: str) -> str:
    """``saga_dist.models.qwen`` -> ``models``; empty for the package itself."""
    return [*name.split("."), ""][1]


def resolve(name: str) -> str:
    """The module that the imported ``name`` belongs to: itself, or its parent where it names an object."""
    return name if name in NAMES else name.rpartition(".")[0]


def test_every_top_level_module_has_its_line() -> None:
    unknown = {top_level(module.name) for module in MODULES} - {""} - LINE_OF.keys()
    assert unknown == set(), "add it to LAYERS, at the lowest line that holds"


def test_the_top_level_stays_small() -> None:
    packages = {module.path.split("/")[0] for module in MODULES if "/" in module.path}
    modules = [module.path for module in MODULES if "/" not in module.path]
    assert len(packages) <= MOST_PACKAGES
    assert len(modules) <= MOST_MODULES


def test_packages_form_no_circle() -> None:
    edges: dict[str, set[str]] = {}
    for module in MODULES:
        own = top_level(module.name)
        targets = {top_level(resolve(name)) for _, name in module.imports if name.startswith("saga_dist.")}
        edges.setdefault(own, set()).update(targets - {own, ""})
    order = TopologicalSorter({name: targets for name, targets in edges.items() if name})
    order.prepare()  # raises CycleError, which names the circle


def test_the_page_for_extending_maps_every_package() -> None:
    shown = (ROOT / "docs" / "extending.md").read_text("utf-8").split("## Reading the code")[1].split("```")[1]
    packages = {module.path.split("/")[0] for module in MODULES if "/" in module.path}
    assert {name for name in packages if f"{name}/" not in shown} == set()


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_imports_come_from_the_same_line_or_below(module: Module) -> None:
    own = top_level(module.name)
    if not own:
        # The package's __init__ only forwards names, lazily.
        assert not [name for name in module.at_import_time if name.startswith("saga_dist")]
        return
    upward = [
        f"{module.path}:{line} imports {name}"
        for line, name in sorted(module.imports)
        if name.startswith("saga_dist.") and LINE_OF.get(top_level(resolve(name)), -1) > LINE_OF[own]
    ]
    assert upward == []


def test_no_import_cycles() -> None:
    edges = {
        module.name: {resolve(name) for name in module.at_import_time if resolve(name) in NAMES} - {module.name}
        for module in MODULES
    }
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in sorted(edges[name]):
                walk(target, (*trail, name))
            done.add(name)

    for name in sorted(edges):
        walk(name, ())


@pytest.mark.parametrize("library", HOMES)
def test_heavy_library_stays_at_home(library: str) -> None:
    strangers = [
        f"{module.path}:{line}"
        for module in MODULES
        for line, name in sorted(module.imports)
        if name.split(".")[0] == library
        and not any(
            module.path == home or (home[-1] == "/" and module.path.startswith(home)) for home in HOMES[library]
        )
    ]
    assert strangers == []


def test_nothing_prints_but_the_command_line() -> None:
    prints = [
        f"{module.path}:{node.lineno}"
        for module in MODULES
        if module.path not in PRINTERS
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert prints == []


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["estimate", "--help"]], ids=" ".join)
def test_help_imports_neither_torch_nor_ray(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from saga_dist.cli.main import main\n"
        f"sys.argv = ['saga-dist', *{arguments!r}]\n"
        "try:\n"
        "    code = main()\n"
        "except SystemExit as end:\n"
        "    code = end.code\n"
        f"print('exit', code or 0, 'heavy', sorted({HEAVY!r} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.stdout.splitlines()[-1:] == ["exit 0 heavy []"], done.stderr
    assert "Usage" in done.stdout
