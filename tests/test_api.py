"""The Python API: what the page shows runs, callbacks, ends of a run, and `import saga_dist` stays light."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import saga_dist
from saga_dist.runtime.stopping import stop_on_signal
from saga_dist.utils.directory_owner import OWNER_NAME

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
METRIC_LOSS_ALONE = ["objective.lambda_lm=0", "objective.lambda_kl=0"]


@pytest.fixture
def config_file(tmp_path: Path, tiny_checkpoint: Path, write_tiny_config: Callable[..., Path]) -> Path:
    return write_tiny_config(tmp_path / "mine.toml", tiny_checkpoint, checkpoint={"every_steps": 1})


def test_importing_the_package_and_naming_its_functions_loads_no_heavy_library() -> None:
    code = (
        "import sys, saga_dist\n"
        "assert 'pydantic' not in sys.modules\n"
        "assert {'train', 'evaluate', 'embed', 'load'} <= set(dir(saga_dist))\n"
        "saga_dist.train, saga_dist.evaluate, saga_dist.embed\n"
        "print(*sorted({'torch', 'ray', 'vllm', 'transformers', 'faiss'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.integration
def test_the_examples_of_the_page_run(
    tmp_path: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (90, 80), "red").save(tmp_path / "photos" / "a.jpg")
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, PAGE.name, "exec"), names)

    run, printed = names["run"], capsys.readouterr().out
    assert isinstance(run, saga_dist.api.TrainedRun)
    assert run.directory == tmp_path / "runs" / "mine"
    assert [line.split(":")[0] for line in printed.splitlines()[:2]] == ["step 1", "step 2"]
    assert len(names["rewards"]) == 2 and None not in names["rewards"]  # type: ignore[arg-type, operator]
    assert (
        run.metrics["step/wall_s"] > 0
        and run.metrics["validation/recall_at_1"] == run.trained.splits["val"].recall_at_1
    )
    assert saga_dist.evaluate(run.directory).recall_at_1 == run.trained.splits["test"].recall_at_1
    assert np.linalg.norm(saga_dist.load(run.encoder).encode("photos/a.jpg")) == pytest.approx(1)
    assert "1 embeddings, 0 images cannot be used" in printed


@pytest.mark.integration
def test_an_exception_of_the_callback_ends_the_run_and_the_same_call_goes_on(tmp_path: Path, config_file: Path) -> None:
    taken: list[int] = []
    run_dir = tmp_path / "run"

    def stop_at_two(step: int, metrics: Mapping[str, float]) -> None:
        taken.append(step)
        if step == 2 and taken.count(2) == 1:
            raise LookupError("seen enough")

    def train() -> saga_dist.api.TrainedRun:
        return saga_dist.train(config_file, METRIC_LOSS_ALONE, run_dir=run_dir, on_step=stop_at_two)

    with pytest.raises(LookupError, match="seen enough"):
        train()
    assert not (run_dir / OWNER_NAME).exists()
    outcome: list[saga_dist.api.TrainedRun] = []
    thread = threading.Thread(target=lambda: outcome.append(train()))  # as in a notebook's background job
    thread.start()
    thread.join()
    assert taken == [1, 2, 2]  # from the checkpoint of step 1
    assert outcome[0].metrics["loss/dml"] != 0
    assert (outcome[0].encoder / "manifest.json").is_file()


def test_a_run_in_another_thread_leaves_signals_to_the_program() -> None:
    stops: list[bool] = []

    def run() -> None:
        with stop_on_signal() as stop:
            stop.steps_begin()
            stops.append(stop())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert stops == [False]
