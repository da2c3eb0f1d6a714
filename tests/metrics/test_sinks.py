"""Where metrics go besides metrics.jsonl: told once, rewound on resume, and a missing library said before training."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from saga_dist.config import RunConfig, parse_config
from saga_dist.errors import ConfigError
from saga_dist.metrics.group_words import GroupSample
from saga_dist.metrics.log import MetricsLog
from saga_dist.metrics.sinks import MlflowSink, TensorBoardSink, WandbSink, build_sinks, require_loggers
from saga_dist.metrics.sinks.identity import run_identity
from saga_dist.runtime.preflight import describe
from saga_dist.runtime.run import metric_sinks, train
from saga_dist.types import StepResult


def make_config(**logging: Any) -> RunConfig:
    return parse_config(
        {"data": {"layout": "birds", "image_size": 80}, "model": {"path": "standin"}, "logging": logging}, where="test"
    )


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


class ListSink:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def open(self, *, after_step: int) -> None:
        self.told.append(("open", after_step))

    def write(self, result: StepResult) -> None:
        self.told.append((result.step, dict(result.metrics)))

    def write_group(self, sample: GroupSample) -> None:
        self.told.append(("group", sample.step))

    def close(self) -> None:
        self.told.append("close")


def test_one_write_reaches_the_file_and_every_sink(tmp_path: Path) -> None:
    first, second = ListSink(), ListSink()
    log = MetricsLog(tmp_path / "metrics.jsonl", [first, second])
    log.truncate(after_step=0)
    log.write(StepResult(step=1, metrics={"loss/dml": 0.5}))
    assert first.told == second.told == [("open", 0), (1, {"loss/dml": 0.5})]
    assert log.rows() == [{"step": 1, "loss/dml": 0.5}]


def test_tensorboard_forgets_the_steps_after_the_checkpoint(tmp_path: Path) -> None:
    for after, values in ((0, (1.0, 2.0, 3.0, 4.0)), (2, (30.0, 40.0, 50.0))):
        sink = TensorBoardSink(tmp_path)
        log = MetricsLog(tmp_path / "metrics.jsonl", [sink])
        log.truncate(after_step=after)
        for step, value in enumerate(values, start=after + 1):
            log.write(StepResult(step=step, metrics={"loss/dml": value}))
        sink.close()
    told = scalars(tmp_path, "loss/dml")
    assert told == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]
    assert told == [(row["step"], row["loss/dml"]) for row in MetricsLog(tmp_path / "metrics.jsonl").rows()]


def test_tensorboard_has_a_row_on_the_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    sink.open(after_step=0)
    sink.write(StepResult(step=1, metrics={"loss/dml": 0.25, "odd/nan": math.nan}))
    assert scalars(tmp_path, "loss/dml") == [(1, 0.25)]  # not closed: the process may die now
    sink.close()


def test_tensorboard_is_the_default_and_can_be_switched_off(tmp_path: Path) -> None:
    assert [type(sink) for sink in build_sinks(make_config(), tmp_path)] == [TensorBoardSink]
    assert build_sinks(make_config(tensorboard=False), tmp_path) == []
    several = build_sinks(make_config(wandb="birds", mlflow="file:///x"), tmp_path)
    assert [type(sink) for sink in several] == [TensorBoardSink, WandbSink, MlflowSink]


def test_sinks_are_closed_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = ListSink()
    monkeypatch.setattr("saga_dist.runtime.run.build_sinks", lambda config, run_dir: [sink])
    with pytest.raises(KeyboardInterrupt), metric_sinks(make_config(), tmp_path):
        raise KeyboardInterrupt
    assert sink.told == ["close"]


def test_an_unopened_sink_has_nothing_to_close(tmp_path: Path) -> None:
    for sink in (TensorBoardSink(tmp_path), WandbSink("p", tmp_path, make_config())):
        sink.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_library_is_one_line_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else object())
    config = make_config(**{name: "somewhere"})
    message = f'logging.{name} is set, but the package {name} is not installed; pip install "saga-dist[{name}]"'
    with pytest.raises(ConfigError) as error:
        train(config, tmp_path / "run")
    assert str(error.value).startswith(message)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError):
        describe(config, tmp_path / "run")


def test_what_is_installed_is_not_complained_about() -> None:
    require_loggers(make_config().logging)


def test_loggers_are_no_part_of_the_result() -> None:
    assert make_config().digest() == make_config(tensorboard=False, wandb="x").digest()
    assert make_config().differences(make_config(mlflow="x")) == []


def test_prometheus_needs_ray() -> None:
    with pytest.raises(ConfigError, match="exported by Ray"):
        parse_config(
            {
                "data": {"layout": "birds", "image_size": 80},
                "runtime": {"kind": "serial"},
                "logging": {"prometheus": True},
            },
            where="test",
        )


def test_another_attempt_at_a_run_directory_is_the_same_run(tmp_path: Path) -> None:
    config = make_config()
    assert run_identity(tmp_path, config) == run_identity(tmp_path / "x" / "..", config)
    assert run_identity(tmp_path, config) != run_identity(tmp_path / "x", config)


def test_wandb_offline_keeps_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason='the extra "wandb" is not installed')
    monkeypatch.setenv("WANDB_MODE", "offline")
    sink = WandbSink("birds", tmp_path, make_config())
    sink.open(after_step=0)
    sink.write(StepResult(step=1, metrics={"loss/dml": 0.5}))
    sink.close()
    (file,) = tmp_path.rglob("*.wandb")
    assert b"loss/dml" in file.read_bytes()


def test_mlflow_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason='the extra "mlflow" is not installed')
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    for after in (0, 1):
        sink = MlflowSink(uri, tmp_path, make_config())
        sink.open(after_step=after)
        sink.write(StepResult(step=after + 1, metrics={"loss/dml": 0.5 - 0.1 * after}))
        sink.close()
    client = mlflow.MlflowClient(tracking_uri=uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == MlflowSink.EXPERIMENT]
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss/dml")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, pytest.approx(0.4))]
    assert run.data.params["objective.lambda_kl"] == "1.0"


def test_mlflow_without_a_server_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason='the extra "mlflow" is not installed')
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match="start the tracking server"):
        MlflowSink("http://127.0.0.1:9", tmp_path, make_config()).open(after_step=0)
