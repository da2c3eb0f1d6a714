"""State of a run as text: what it does, its workers, its last group in words, its numbers with units and meaning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from saga_dist.metrics.group_words import completion_lines, group_in_words
from saga_dist.metrics.registry import find_metric
from saga_dist.report.live.heartbeat import Pulse
from saga_dist.report.live.run import LiveRun
from saga_dist.retrieval.results import PRETRAINED
from saga_dist.utils.durations import duration, pace
from saga_dist.utils.printable import printable

SHOWN: dict[str, tuple[str, ...]] = {
    "rewards and verdicts": (
        "rollout/reward_mean",
        "rollout/verdict_accuracy_same",
        "rollout/verdict_accuracy_different",
        "rollout/contributing_share",
        "rollout/json_valid_share",
        "verdict/probability_mean",
        "verdict/right_share",
    ),
    "losses": ("loss/dml", "loss/grpo", "loss/verdict", "loss/kl"),
    "shares of the losses": (
        *("share/tower_dml", "share/tower_grpo", "share/tower_verdict"),
        *("share/pooler_dml", "share/pooler_kl"),
    ),
    "queue": (
        *("rollout_pool/in_flight_share", "rollout_pool/idle_share", "rollout_pool/retries"),
        *("rollout/quarantined", "staleness/held_back", "learner/idle_share"),
    ),
    "time": ("step/rollout_s", "step/replay_s", "step/wall_s", "rollout/tokens_per_s"),
    "unseen classes": ("validation/recall_at_1",),
}
"""Metrics of the view by heading; those that a run does not have are left out."""
TREND_STEPS = 24
"""Steps whose values a trend shows."""
PACE_STEPS = 20
"""Steps over which the pace is averaged."""
WIDE = 110
"""Columns of a terminal from which on the meaning of each number has room."""
_BARS = "▁▂▃▄▅▆▇█"
_EXCERPT = 400
_RESUME = "the command that started it resumes it"


def status(run: LiveRun) -> str:
    """Returns one line: how far the run is, its pace, and whether its process lives."""
    so_far = f"step {run.step:,} of {run.config.run.steps:,}"
    owner, pulse = run.heartbeat.owner, run.heartbeat.pulse
    if run.is_finished:
        return f"finished: {so_far}{_recall(run)}"
    if pulse is Pulse.NONE or owner is None:
        return f"stopped: {so_far}, no process writes here; {_RESUME}"
    process = printable(f"process {owner.pid} on {owner.host}")
    if pulse is Pulse.SILENT:
        quiet = duration(run.heartbeat.unchanged_s)
        return f"silent: {so_far}, no heartbeat of {process} for {quiet}; it has died or hangs; {_RESUME}"
    doing = "starting" if not run.step else "evaluating" if run.has_all_steps else "running"
    return f"{doing}: {so_far}{_pace(run)}; {process}"


def view(run: LiveRun, *, width: int) -> RenderableType:
    """Returns the whole view for a console.

    Args:
        run: state of the run.
        width: columns of the console; from ``WIDE`` on each number is explained.
    """
    parts: list[RenderableType] = [Text(printable(str(run.path)), "bold"), Text(status(run))]
    parts += [Text(line) for line in worker_lines(run)]
    if run.group is not None:
        step, group = run.group
        _, text = completion_lines(group)[0]
        excerpt = text[:_EXCERPT] + (" …" if len(text) > _EXCERPT else "")
        parts += [Text(f"last group (step {step}): {group_in_words(group)}; its first completion:")]
        parts.append(Padding(Text(excerpt, "dim"), (0, 2)))
    if run.steps:
        parts.append(_numbers(run, explained=width >= WIDE))
    return Group(*parts)


def worker_lines(run: LiveRun) -> Iterator[str]:
    """Yields a line per pool with its workers by state, or one that says why there are none."""
    if run.is_finished or run.heartbeat.pulse in (Pulse.NONE, Pulse.SILENT):
        return
    if run.workers is None:
        serial = run.config.runtime.kind == "serial"
        yield f"workers: {'all parts in the process of the run' if serial else 'none yet'}"
        return
    for role, pool in run.workers.pools.items():
        states = Counter(member.state for member in pool.members)
        told = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        yield f"{role} workers: {pool.num_up} of {pool.target} up{f' ({told})' if told else ''}"


def trend(values: list[float]) -> str:
    """Returns a bar per value, from the smallest to the largest; values that are not finite are blank."""
    finite = [value for value in values if abs(value) < float("inf")]
    if not finite:
        return ""
    low, span = min(finite), max(finite) - min(finite)
    bar = {value: _BARS[round((value - low) / span * (len(_BARS) - 1)) if span else 0] for value in finite}
    return "".join(bar.get(value, " ") for value in values)


def _numbers(run: LiveRun, *, explained: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    table.add_column("last", justify="right", no_wrap=True)
    table.add_column("trend", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    if explained:
        table.add_column("meaning")
    for heading, names in SHOWN.items():
        rows = [_row(run, name, explained=explained) for name in names if run.recent(name, 1)]
        if rows:
            table.add_row(Text(heading, "bold"))
        for row in rows:
            table.add_row(*map(Text, row))
    return table


def _row(run: LiveRun, name: str, *, explained: bool) -> list[str]:
    recent, metric = run.recent(name, TREND_STEPS), find_metric(name)
    step, last = recent[-1]
    value = f"{last:,.0f}" if abs(last) >= 1000 else f"{last:.3g}"
    shown = value if step == run.step else f"{value} (step {step:,})"  # not every step has every metric
    unit, measures = (metric.unit, metric.measures) if metric is not None else ("", "")
    row = [f"  {name}", shown, trend([value for _, value in recent]), unit.partition(";")[0]]
    return [*row, measures.partition(". ")[0].rstrip(".")] if explained else row


def _pace(run: LiveRun) -> str:
    seconds = [value for _, value in run.recent("step/wall_s", PACE_STEPS)]
    if not any(seconds) or run.has_all_steps:
        return ""
    return f", {pace(sum(seconds) / len(seconds), run.config.run.steps - run.step, 'step')}"


def _recall(run: LiveRun) -> str:
    if run.results is None:
        return ""
    recalls = {one.name: 100 * one.splits["test"].recall_at_1 for one in run.results.methods if "test" in one.splits}
    told = [f"{value:.1f} ({printable(name)})" for name, value in recalls.items() if name != PRETRAINED]
    before = f", {recalls[PRETRAINED]:.1f} before" if PRETRAINED in recalls else ""
    return f"; Recall@1 {', '.join(told)}{before}" if told else ""
