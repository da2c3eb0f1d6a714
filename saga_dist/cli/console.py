"""Terminal output: one live line of progress during training, and tables of results at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from saga_dist.retrieval.run_comparison import interval_remark
from saga_dist.retrieval.training_text import training_lines
from saga_dist.utils.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from saga_dist.retrieval.results import MethodResult
    from saga_dist.types import StepResult

LINES_WITHOUT_TERMINAL = 20
"""Approximate number of progress lines per run when output goes to a file or a job log."""


def widen(console: Console, columns: int) -> None:
    """Widens the console to at least ``columns`` when output goes to a file or a job log, so that no table is cut."""
    if not console.is_terminal:
        console.width = max(console.width, columns)


@contextmanager
def step_progress(console: Console, title: str, num_steps: int) -> Iterator[Callable[[StepResult], None]]:
    """Yields a callback that shows each step: a live bar in a terminal, about twenty plain lines elsewhere.

    Args:
        console: console to print to.
        title: text in front of the progress.
        num_steps: optimizer steps of the whole run.
    """
    if not console.is_terminal:
        every = max(1, num_steps // LINES_WITHOUT_TERMINAL)

        def print_line(result: StepResult) -> None:
            if result.step % every == 0 or result.step == num_steps:
                console.print(
                    f"{printable(title)}  step {result.step}/{num_steps}  {step_line(result)}",
                    highlight=False,
                    soft_wrap=True,
                    markup=False,
                )

        yield print_line
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress, numbers = Progress(*columns, console=console), Text()
    task = progress.add_task(printable(title), total=num_steps)

    def show(result: StepResult) -> None:
        progress.update(task, completed=result.step)
        numbers.plain = step_line(result)  # below the bar, where it may wrap

    with Live(Group(progress, numbers), console=console):
        yield show


def step_line(result: StepResult) -> str:
    """Returns a step's metrics in one line: reward, verdicts, contributing share, losses, shares of the MLLM's loss at
    the tower and of the attention alignment at the pooler, tokens/s, seconds.

    Metrics that the step does not have are left out.
    """
    metrics = result.metrics
    parts = []
    for label, name, form in (
        ("reward", "rollout/reward_mean", ".2f"),
        ("right same", "rollout/verdict_accuracy_same", ".0%"),
        ("different", "rollout/verdict_accuracy_different", ".0%"),
        ("contributing", "rollout/contributing_share", ".0%"),
        ("json", "rollout/json_valid_share", ".0%"),
        ("p(right)", "verdict/probability_mean", ".2f"),
        ("right same", "verdict/right_share_same", ".0%"),
        ("different", "verdict/right_share_different", ".0%"),
        ("dml", "loss/dml", ".3f"),
        ("grpo", "loss/grpo", "+.3f"),
        ("verdict", "loss/verdict", ".3f"),
        ("kl", "loss/kl", ".3f"),
        ("grpo share", "share/tower_grpo", ".0%"),
        ("verdict share", "share/tower_verdict", ".0%"),
        ("kl share", "share/pooler_kl", ".0%"),
    ):
        if name in metrics and (name != "loss/grpo" or "rollout/reward_mean" in metrics):
            parts.append(f"{label} {metrics[name]:{form}}")
    if "rollout/tokens_per_s" in metrics:
        parts.append(f"{metrics['rollout/tokens_per_s']:.0f} tok/s")
    parts.append(f"{metrics.get('step/wall_s', 0.0):.2f} s/step")
    return "  ".join(parts)


def _table(title: str) -> Table:
    """Returns an empty table whose first column is the method."""
    table = Table(
        title=Text(f"\n{printable(title)}"), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("method", no_wrap=True)
    return table


def results_table(methods: Iterable[MethodResult], *, split: str, title: str) -> Table:
    """Returns the table of retrieval results on a split, one row per method.

    Args:
        methods: results; every one must have the split.
        split: ``val`` or ``test``.
        title: title of the table.
    """
    table = _table(title)
    for heading in ("R@1", "95 %", "R@2", "R@4", "R@8", "NMI", "steps", "s"):
        table.add_column(heading, justify="right")
    for method in methods:
        result = method.splits[split]
        low, high = result.confidence_interval
        recalls = [
            f"{100 * value:.1f}"
            for value in (result.recall_at_1, result.recall_at_2, result.recall_at_4, result.recall_at_8)
        ]
        table.add_row(
            Text(printable(method.name)),
            recalls[0],
            f"{100 * low:.1f}–{100 * high:.1f}",
            *recalls[1:],
            f"{result.nmi:.3f}",
            f"{method.optimizer_steps}",
            f"{method.wall_s:.0f}" if method.wall_s < 1000 else f"{method.wall_s / 60:.0f}m",
        )
    return table


def verdict_table(methods: Iterable[MethodResult]) -> Table:
    """Returns the table of the MLLM's verdict accuracy in percent, by split and by same and different pairs.

    Methods without verdicts are left out.
    """
    table = _table("the frozen MLLM's verdicts, % right, on pairs of training and of unseen classes")
    for heading in ("train: same", "different", "unseen: same", "different", "JSON"):
        table.add_column(heading, justify="right")
    for method in methods:
        judged = [method.verdicts[split] for split in ("train", "test") if split in method.verdicts]
        if judged:
            shares = [share for one in judged for share in (one.same_accuracy, one.different_accuracy)]
            valid = min(one.json_valid_share for one in judged)
            table.add_row(Text(printable(method.name)), *(f"{100 * share:.0f}" for share in (*shares, valid)))
    return table


def probe_table(methods: Iterable[MethodResult]) -> Table:
    """Returns the table of linear-probe accuracy in percent per attribute on unseen classes, one row per method.

    Methods without probes are left out.
    """
    table = _table("linear probes of the embedding on unseen classes, % right")
    probed = [method for method in methods if method.probes]
    attributes = list(dict.fromkeys(name for method in probed for name in method.probes or {}))
    for heading in (*attributes, "mean"):
        table.add_column(Text(printable(heading)), justify="right")
    for method in probed:
        values = [(method.probes or {}).get(name, float("nan")) for name in attributes]
        table.add_row(
            Text(printable(method.name)), *(f"{100 * value:.0f}" for value in (*values, sum(values) / len(values)))
        )
    return table


def results_notes(methods: Sequence[MethodResult], *, split: str) -> list[str]:
    """Returns the lines below a table of results: what the interval covers, queries that cannot be found, training."""
    num_classes = min(method.splits[split].num_classes for method in methods)
    remark = interval_remark(num_classes=num_classes, num_seeds=1)
    # The queries are those of the split, the same for every method.
    unfindable = methods[0].splits[split].unfindable_remark
    return [
        f"95 %: over test classes; {remark}",
        *([unfindable] if unfindable else []),
        *training_lines(methods),
    ]


def print_results(console: Console, methods: Sequence[MethodResult]) -> None:
    """Prints the test results and their notes, then the tables of verdicts and probes when a method has them."""
    console.print(results_table(methods, split="test", title="unseen classes (test)"))
    for note in results_notes(methods, split="test"):
        console.print(printable(note), highlight=False, markup=False, soft_wrap=True)
    for table, shown in (
        (verdict_table(methods), any(method.verdicts for method in methods)),
        (probe_table(methods), any(method.probes for method in methods)),
    ):
        if shown:
            console.print(table)
