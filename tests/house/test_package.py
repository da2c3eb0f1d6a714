"""The wheel that `pip wheel .` would build."""

from __future__ import annotations

from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}


def test_wheel_holds_the_type_marker_and_what_is_no_python() -> None:
    assert "saga_dist/py.typed" in SHIPPED
    assert {"saga_dist/standin/demo.toml", "saga_dist/standin/weights/model.safetensors"} <= SHIPPED
    outside = {path for path in SHIPPED if not path.startswith("saga_dist/")}
    assert outside == {"cpu_torch_shim.py", "cpu_torch_shim.pth"}


def test_wheel_holds_every_configuration_page_and_template() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("configs", "deploy", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"configs/tables/table2_cub.toml", "deploy/kuberay/cub-rayjob.yaml", "docs/evidence.md"} <= files
    shipped = {path for path in SHIPPED if path.startswith("saga_dist/shipped/")}
    built = {path for path in shipped if path.startswith("saga_dist/shipped/site/")}
    assert {f"saga_dist/shipped/{name}" for name in files} == shipped - built


def test_wheel_holds_the_documentation_where_it_was_built(tmp_path: Path) -> None:
    for name in (
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "saga_dist/__init__.py",
        "build/site/index.html",
        "build/lib/x.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8") if (ROOT / name).is_file() else "x")
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text("utf-8"))
    with_site = {file.distribution_path for file in WheelBuilder(str(tmp_path)).recurse_selected_project_files()}
    assert with_site == {"saga_dist/__init__.py", "saga_dist/shipped/site/index.html"}
    (tmp_path / "build" / "site" / "index.html").unlink()
    without = {file.distribution_path for file in WheelBuilder(str(tmp_path)).recurse_selected_project_files()}
    assert without == {"saga_dist/__init__.py"}
