"""What the terminal shows: the numbers of a step, and tables that fit 80 columns."""

from __future__ import annotations

import io

from rich.console import Console

from saga_dist.baselines.evaluate import Comparison
from saga_dist.baselines.frozen_encoder import EncoderCard
from saga_dist.cli import evaluate
from saga_dist.cli.console import print_results, results_notes, step_line, step_progress
from saga_dist.retrieval.results import MethodResult, SplitResult, VerdictResult
from saga_dist.types import StepResult

ROLLOUT_STEP = StepResult(
    step=3,
    metrics={
        "rollout/reward_mean": 0.725,
        "rollout/verdict_accuracy_same": 0.5,
        "rollout/verdict_accuracy_different": 0.95,
        "rollout/contributing_share": 0.25,
        "rollout/json_valid_share": 1.0,
        "rollout/tokens_per_s": 5124.4,
        "loss/dml": 0.9,
        "loss/grpo": -0.0031,
        "loss/kl": 1.25,
        "share/tower_grpo": 0.42,
        "share/pooler_kl": 0.07,
        "step/wall_s": 2.5,
    },
)


def methods() -> list[MethodResult]:
    split = SplitResult(
        recall_at_1=0.313,
        recall_at_2=0.456,
        recall_at_4=0.611,
        recall_at_8=0.741,
        nmi=0.431,
        confidence_interval=(0.276, 0.352),
        num_queries=1600,
        num_classes=50,
    )
    verdicts = VerdictResult(
        same_accuracy=0.6, different_accuracy=1.0, json_valid_share=0.995, num_same=100, num_different=100
    )
    trained = MethodResult(
        name="metric loss only",
        splits={"test": split},
        seeds=(0,),
        wall_s=1236.0,
        optimizer_steps=100,
        verdicts={"train": verdicts, "test": verdicts},
        probes=dict.fromkeys(("bill", "crown", "breast", "wing", "tail", "legs"), 0.5),
    )
    return [MethodResult(name="pre-trained", splits={"test": split}, seeds=(0,), wall_s=0.0), trained]


def test_step_line_has_what_was_measured_and_nothing_else() -> None:
    assert step_line(ROLLOUT_STEP) == (
        "reward 0.72  right same 50%  different 95%  contributing 25%  json 100%  dml 0.900  grpo -0.003  kl 1.250  "
        "grpo share 42%  kl share 7%  5124 tok/s  2.50 s/step"
    )
    plain = StepResult(step=1, metrics={"loss/dml": 0.5, "loss/grpo": 0.0, "step/wall_s": 0.2})
    assert step_line(plain) == "dml 0.500  0.20 s/step"
    verdict = {
        "verdict/probability_mean": 0.512,
        "verdict/right_share_same": 0.25,
        "verdict/right_share_different": 1.0,
    }
    forced = StepResult(step=1, metrics={**verdict, "loss/dml": 0.5, "loss/verdict": 1.08, "step/wall_s": 0.4})
    assert step_line(forced) == "p(right) 0.51  right same 25%  different 100%  dml 0.500  verdict 1.080  0.40 s/step"


def test_queries_that_cannot_be_found_are_remarked_on() -> None:
    first, second = methods()
    assert not any("cannot be found" in note for note in results_notes([first, second], split="test"))
    lost = {"test": first.splits["test"].model_copy(update={"num_unfindable": 12})}
    notes = results_notes([first.model_copy(update={"splits": lost}), second], split="test")
    assert notes[1] == ("12 of 1,600 queries cannot be found and count as misses: their class has no other image")


def test_evaluate_remarks_on_queries_that_cannot_be_found() -> None:
    card = EncoderCard(
        spec="hf:x", backbone="x", pretraining="", pooling="", preprocessing="", dimension=8, parameters=9,
        image_height=8, image_width=8,
    )  # fmt: skip
    result = methods()[0].splits["test"].model_copy(update={"num_unfindable": 12})
    out = io.StringIO()
    row = Comparison(encoder=card, data="folder x", split="test", result=result, ms_per_image=1.0, device="cpu")
    evaluate._print(row, Console(file=out, width=200))
    assert "1,600 of 50 unseen classes; 12 of 1,600 queries cannot be found and count as misses" in out.getvalue()


def test_tables_fit_80_columns() -> None:
    out = io.StringIO()
    print_results(Console(file=out, width=80), methods())
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "31.3   27.6–35.2" in text
    assert "pre-trained" in text.split("verdicts")[0]
    assert "pre-trained" not in text.split("verdicts")[1]  # it was not judged here, so it has no row


def test_without_a_terminal_there_are_about_twenty_plain_lines() -> None:
    out = io.StringIO()
    with step_progress(Console(file=out, width=80), "train", 100) as show:
        for step in range(1, 101):
            show(StepResult(step=step, metrics=ROLLOUT_STEP.metrics))
    lines = out.getvalue().splitlines()
    assert len(lines) == 20
    assert lines[-1].startswith("train  step 100/100  reward 0.72")


def test_in_a_terminal_the_bar_stays_whole_above_the_numbers() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    with step_progress(console, "train", 4) as show:
        show(ROLLOUT_STEP)
    shown = [line for line in out.getvalue().splitlines() if "3/4" in line]
    assert shown
    assert "reward" not in shown[-1]
    assert "reward 0.72" in out.getvalue()
