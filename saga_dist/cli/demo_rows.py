"""The rows of ``saga-dist demo``: the whole method on the built-in birds, every row with equal optimizer steps.

The metric-loss row is tuned more than the SAGA row: the best of three learning rates, each stopped early on validation
classes. Workers hold only the frozen MLLM, so all rows share the same workers; each row gets a new learner.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from saga_dist.cli.console import print_results
from saga_dist.cli.progress import step_progress
from saga_dist.config import RunConfig, load_config
from saga_dist.metrics.log import MetricsLog
from saga_dist.retrieval.results import MethodResult, Results
from saga_dist.runtime.protocol import ReusableRuntime
from saga_dist.runtime.run import build_runtime, open_run_directory, train_method
from saga_dist.runtime.stopping import StopRequest, stop_on_signal
from saga_dist.standin import DEMO_CONFIG
from saga_dist.training.evaluation import evaluate_method
from saga_dist.training.training_facts import training_facts
from saga_dist.utils.directory_owner import owned_directory
from saga_dist.utils.printable import printable
from saga_dist.utils.shipped import shipped_page

log = logging.getLogger(__name__)

BASELINE_LR_FACTORS = (0.3, 1.0, 3.0)
"""Factors on ``optimizer.lr_encoder`` tried for the metric-loss row."""
EXPLANATION = (
    "The world: drawn birds; in training the flower behind the bird gives the species away, on unseen species it says "
    "nothing. The table shows whether the MLLM's gradient moves the encoder from flower to bird in this one made-up "
    "world, with one seed; it says nothing about photographs. Over six seeds of such a world nearly all of the gain "
    "was the attention alignment's, which shows the pooler the bird ({page})."
)


def run_demo(
    run_dir: Path, overrides: Sequence[str] = (), *, ablations: bool = False, stop: StopRequest | None = None
) -> Results:
    """Trains every row, prints the tables, writes ``results.json`` and returns the results.

    Args:
        run_dir: run directory of the SAGA row; those of the other rows are in its folder ``rows/``.
        overrides: ``section.key=value`` texts that override ``standin/demo.toml``.
        ablations: add the rows "+ GRPO only" and "+ KL only".
        stop: request to stop of the caller; None: signals are obeyed from now on.
    """
    with owned_directory(run_dir, option="--run-dir"), stop_on_signal(stop) as stop:
        return _run_rows(run_dir, load_config(DEMO_CONFIG, overrides), stop, ablations=ablations)


def _run_rows(run_dir: Path, config: RunConfig, stop: StopRequest, *, ablations: bool) -> Results:
    console = Console()
    started = time.monotonic()
    open_run_directory(run_dir, config)
    running = build_runtime(config, stop=stop, home=run_dir)
    parts = f"{config.runtime.kind} runtime, {config.rollout.engine} engine"
    console.print(f"{parts}: learner up after {time.monotonic() - started:.0f} s", highlight=False)
    try:
        digest = running.backbone_digest()
        table = _Table(config, running, run_dir, console, stop)
        methods = [table.pretrained(), table.metric_loss_only()]
        if ablations:
            methods += [table.row("+ GRPO only", lambda_kl=0.0), table.row("+ KL only", lambda_lm=0.0)]
        methods.append(table.row("SAGA", directory=run_dir))
        results = Results(methods=methods, backbone_unchanged=running.backbone_digest() == digest)
    finally:
        with stop.deferred():
            running.close()
    results.save(run_dir / "results.json")
    console.print()
    print_results(console, methods)
    console.print(_learning_line(run_dir), highlight=False)
    console.print(f"frozen MLLM bit-identical after training: {'yes' if results.backbone_unchanged else 'NO'}")
    console.print(EXPLANATION.format(page=shipped_page("docs/evidence.md")), highlight=False, markup=False)
    console.print(
        printable(f"run directory: {run_dir}   {time.monotonic() - started:.0f} s"), highlight=False, markup=False
    )
    return results


class _Table:
    """The rows of the demo's table, trained one after the other on shared workers."""

    def __init__(
        self,
        config: RunConfig,
        runtime: ReusableRuntime,
        run_dir: Path,
        console: Console,
        stop: StopRequest,
    ) -> None:
        self._config, self._runtime, self._run_dir = config, runtime, run_dir
        self._console, self._stop = console, stop

    def pretrained(self) -> MethodResult:
        """Returns the results of the pre-trained encoder with mean-pooled tokens."""
        result = evaluate_method("pre-trained", self._runtime, self._config, splits=("val", "test"), pretrained=True)
        facts = training_facts(self._config, self._run_dir, pretrained=True)
        return result.model_copy(update={"training": facts})

    def metric_loss_only(self) -> MethodResult:
        """Returns the best of several learning rates by validation Recall@1; only that one is evaluated on test."""
        alone = {"lambda_lm": 0.0, "lambda_kl": 0.0}
        tried: dict[float, MethodResult] = {}
        for factor in BASELINE_LR_FACTORS:
            rate = self._config.optimizer.lr_encoder * factor
            config = _varied(self._config, objective=alone, optimizer={"lr_encoder": rate})
            tried[rate] = self._train(f"metric loss only, lr {rate:.0e}", config, self._baseline_dir(rate), test=False)
        rate = max(tried, key=lambda rate: tried[rate].splits["val"].recall_at_1)
        config = _varied(self._config, objective=alone, optimizer={"lr_encoder": rate})
        # The run is finished, so this call trains nothing: it restores the selected step and evaluates it on test.
        result = self._train("metric loss only", config, self._baseline_dir(rate))
        return result.model_copy(update={"wall_s": tried[rate].wall_s})

    def row(self, name: str, *, directory: Path | None = None, **objective: float) -> MethodResult:
        """Trains and evaluates a row with some weights of the objective replaced.

        Args:
            name: name of the row.
            directory: run directory; by default a folder of ``rows/`` named after the row.
            objective: values of the configuration's section ``[objective]`` by key.
        """
        directory = directory or self._run_dir / "rows" / name.strip("+ ").lower().replace(" ", "_")
        return self._train(name, _varied(self._config, objective=objective), directory)

    def _baseline_dir(self, rate: float) -> Path:
        return self._run_dir / "rows" / f"metric_loss_lr_{rate:.0e}"

    def _train(self, name: str, config: RunConfig, directory: Path, *, test: bool = True) -> MethodResult:
        self._runtime.reset_learner(config)
        with owned_directory(directory, option="--run-dir"), step_progress(name, config.run.steps) as on_step:
            open_run_directory(directory, config)
            return train_method(
                name,
                config,
                self._runtime,
                directory,
                on_step=on_step,
                stop=self._stop,
                evaluate_test=test,
            )


def _varied(config: RunConfig, **sections: dict[str, float]) -> RunConfig:
    """Returns the configuration with some values of some sections replaced."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )


def _learning_line(run_dir: Path) -> str:
    """Returns one line on SAGA training: means of the first and the last fifth of its steps, and the JSON validity."""
    rows = [row for row in MetricsLog(run_dir / "metrics.jsonl").rows() if "rollout/reward_mean" in row]

    fifth = max(1, len(rows) // 5)

    def change(name: str) -> str:
        first, last = (sum(row[name] for row in part) / len(part) for part in (rows[:fifth], rows[-fifth:]))
        return f"{first:.2f} -> {last:.2f}"

    same, different = (change(f"rollout/verdict_accuracy_{kind}") for kind in ("same", "different"))
    lowest = min(row["rollout/json_valid_share"] for row in rows)
    return (
        "SAGA training, first fifth of the steps -> last fifth: "
        f"reward {change('rollout/reward_mean')}, verdict accuracy same {same}, different {different}; "
        f"JSON validity never below {lowest:.2f}"
    )
