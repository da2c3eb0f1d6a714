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
    assert outside == {"torchvision_cpu_shim.py", "torchvision_cpu_shim.pth"}


def test_wheel_holds_every_configuration_page_and_template() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("configs", "deploy", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"configs/tables/table2_cub.toml", "deploy/kuberay/cub-rayjob.yaml", "docs/evidence.md"} <= files
    assert {f"saga_dist/shipped/{name}" for name in files} == {
        path for path in SHIPPED if path.startswith("saga_dist/shipped/")
    }
