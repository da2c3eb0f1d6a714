"""A group of a step in the loggers: completions as text that cannot harm, and both images."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report.live.runs import make_group
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from saga_dist.config import RunConfig, parse_config
from saga_dist.metrics.group_words import GroupSample
from saga_dist.metrics.log import MetricsLog
from saga_dist.metrics.sinks import MlflowSink, TensorBoardSink, WandbSink

SAMPLE = GroupSample(
    step=3,
    group=make_group(),
    images=(np.full((8, 10, 3), 200, np.uint8), np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3)),
)


@pytest.fixture
def config() -> RunConfig:
    return parse_config({"data": {"layout": "birds", "image_size": 80}, "model": {"path": "standin"}}, where="test")


def test_tensorboard_has_the_completions_and_both_images_of_a_group(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    log = MetricsLog(tmp_path / "metrics.jsonl", [sink])
    log.truncate(after_step=0)
    log.write_group(SAMPLE)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0})
    events.Reload()  # not closed: the process may die now
    (text,) = events.Tensors("group/completions/text_summary")
    assert text.step == 3
    markdown = text.tensor_proto.string_val[0].decode()
    assert markdown.startswith("pair s000003.m0.p01, images 3 and 4, different classes: 4 completions, 2 right")
    assert "**different (right), reward 1, advantage +1.00**\n\n    The bills differ.\n    no\n" in markdown
    assert "**no verdict (not right), reward 0, advantage -1.00**" in markdown
    assert "\x1b" not in markdown
    for name, expected in zip("ab", SAMPLE.images, strict=True):
        (event,) = events.Images(f"group/image_{name}")
        assert event.step == 3
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), expected)
    sink.close()


def test_wandb_receives_escaped_text_and_both_images(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = []
    run = SimpleNamespace(log=rows.append, define_metric=lambda *arguments, **options: None)
    double = ModuleType("wandb")
    double.__dict__.update(
        init=lambda **options: run,
        Error=RuntimeError,
        Html=lambda text: ("html", text),
        Image=lambda pixels, caption: (caption, pixels),
    )
    monkeypatch.setitem(sys.modules, "wandb", double)
    sink = WandbSink("birds", tmp_path, config)
    sink.open(after_step=0)
    hostile = make_group(pair_id="<script>alert(1)</script>")
    sink.write_group(GroupSample(3, hostile, SAMPLE.images))
    (row,) = rows
    assert row["step"] == 3
    kind, text = row["group/completions"]
    assert kind == "html" and text.startswith("<pre>pair &lt;script&gt;") and "<script>" not in text
    assert "The bills differ.\nno" in text
    assert row["group/images"] == [("image a", SAMPLE.images[0]), ("image b", SAMPLE.images[1])]


@pytest.fixture
def mlflow_double(monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    """Replaces MLflow's exceptions; returns the class of its errors."""
    error = type("MlflowException", (Exception,), {})
    for name in ("mlflow", "mlflow.exceptions"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["mlflow.exceptions"].MlflowException = error  # type: ignore[attr-defined]
    return error


def test_mlflow_receives_a_text_file_and_both_images(
    tmp_path: Path, config: RunConfig, mlflow_double: type[Exception]
) -> None:
    sink, files = MlflowSink("http://server", tmp_path, config), dict[str, Any]()
    sink._run_id, sink._client = (
        "run-1",
        SimpleNamespace(
            log_text=lambda run_id, text, name: files.update({f"{run_id}/{name}": text}),
            log_image=lambda run_id, image, *, artifact_file: files.update({f"{run_id}/{artifact_file}": image}),
        ),
    )
    sink.write_group(SAMPLE)
    assert list(files) == [f"run-1/groups/step_000003{end}" for end in (".txt", "_a.png", "_b.png")]
    assert files["run-1/groups/step_000003.txt"].splitlines()[2:4] == [
        "different (right), reward 1, advantage +1.00",
        "The bills differ.",
    ]
    assert files["run-1/groups/step_000003_b.png"] is SAMPLE.images[1]


@pytest.mark.parametrize("kind", ["of the server", "of the store of files"])
def test_a_group_that_mlflow_loses_is_one_warning_and_training_goes_on(
    kind: str,
    tmp_path: Path,
    config: RunConfig,
    mlflow_double: type[Exception],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*arguments: Any) -> None:
        raise (mlflow_double if kind == "of the server" else ConnectionError)("no route\nto host")

    sink = MlflowSink("http://server", tmp_path, config)
    sink._client = SimpleNamespace(log_text=fail)
    sink.write_group(SAMPLE)
    sink.write_group(SAMPLE)
    assert [record.getMessage() for record in caplog.records] == ["MLflow lost the group of step 3: no route"]
