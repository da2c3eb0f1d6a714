"""The wheel that `pip wheel .` would build."""

from __future__ import annotations

from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[2]


def test_wheel_holds_the_type_marker_and_what_is_no_python() -> None:
    shipped = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert "saga_dist/py.typed" in shipped
    assert {"saga_dist/standin/demo.toml", "saga_dist/standin/weights/model.safetensors"} <= shipped
    assert not [path for path in shipped if not path.startswith("saga_dist/")]
