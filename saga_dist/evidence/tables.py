"""The evidence in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from saga_dist.evidence.record import Evidence, Gradients, Looks, Probes, RecallFigure, Spread, StepFigure
from saga_dist.evidence.verdicts import STEP_METRICS


def tables(evidence: Evidence) -> Iterator[Table]:
    """Yields a table for each instrument that measured something."""
    unseen = f"{evidence.num_images:,} images of {evidence.num_classes:,} unseen classes, step {evidence.step}"
    yield _recalls(evidence.recalls, unseen)
    if evidence.probes is not None:
        yield _probes(evidence.probes)
    if evidence.looks:
        yield _looks(evidence.looks)
    if evidence.gradients is not None:
        yield _gradients(evidence.gradients)
        yield _cosines(evidence.gradients)
    if evidence.spread is not None:
        yield _spread(evidence.spread)
    if evidence.steps:
        yield _steps(evidence.steps)


def percent(value: float) -> str:
    """Returns a share in percent, one decimal."""
    return f"{100 * value:.1f}"


def signed(value: float | None) -> str:
    """Returns a cosine, or a dash where there is none."""
    return "–" if value is None else f"{value:+.2f}"


def _table(title: str, first: str, *headings: str) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _recalls(recalls: tuple[RecallFigure, ...], unseen: str) -> Table:
    table = _table(f"Recall@1, % ({unseen})", "encoder, view", "R@1", "95 %")
    for one in recalls:
        low, high = one.interval
        table.add_row(f"{one.encoder}, {one.space}", percent(one.recall_at_1), f"{percent(low)}–{percent(high)}")
    return table


def _probes(probes: Probes) -> Table:
    table = _table("attributes told right on unseen classes, % (± standard error)", "encoder, view", *probes.attributes)
    table.add_column("mean", justify="right")
    mean = sum(probes.chance) / len(probes.chance)
    table.add_row("chance", *(f"{100 * value:.0f}" for value in probes.chance), f"{100 * mean:.1f}")
    for column in probes.columns:
        cells = (
            f"{100 * value:.0f}±{100 * error:.0f}" for value, error in zip(column.accuracy, column.error, strict=True)
        )
        table.add_row(
            f"{column.encoder}, {column.space}", *cells, f"{100 * column.mean:.1f}±{100 * column.mean_error:.1f}"
        )
    table.add_section()
    for change in probes.changes:
        cells = (
            f"{100 * value:+.0f}±{100 * error:.0f}"
            for value, error in zip(change.difference, change.error, strict=True)
        )
        table.add_row(
            f"trained − pre-trained, {change.space}", *cells, f"{100 * change.mean:+.1f}±{100 * change.mean_error:.1f}"
        )
    return table


def _looks(looks: tuple[Looks, ...]) -> Table:
    table = _table("where attention lies on unseen images, %", "who", "part", "bird", "flowers", "entropy, nats")
    for one in looks:
        table.add_row(one.who, percent(one.part), percent(one.bird), percent(one.distractors), f"{one.entropy:.2f}")
    return table


def _gradients(gradients: Gradients) -> Table:
    what = f"{gradients.num_groups} groups of step {gradients.step}, {gradients.num_same} of one class"
    table = _table(
        f"gradient norms, each loss alone at weight 1 ({what})", "loss", "tower", "pooler", "encoder", "weight"
    )
    for one in gradients.norms:
        table.add_row(one.loss, *(f"{value:.4g}" for value in (one.tower, one.pooler, one.encoder, one.weight)))
    return table


def _cosines(gradients: Gradients) -> Table:
    table = _table("cosines of these gradients", "losses", "tower", "pooler", "encoder")
    for one in gradients.cosines:
        table.add_row(" · ".join(one.losses), signed(one.tower), signed(one.pooler), signed(one.encoder))
    return table


def _spread(spread: Spread) -> Table:
    title = f"attention targets of {spread.num_completions} rewarded completions of that step, nats an image"
    table = _table(title, "", "teacher", "pooler", "uniform", "KL(teacher ‖ pooler)")
    values = (spread.teacher, spread.pooler, spread.uniform, spread.divergence)
    table.add_row("entropy", *(f"{value:.2f}" for value in values))
    return table


def _steps(steps: tuple[StepFigure, ...]) -> Table:
    table = _table("training", "", "first fifth", "last fifth", "steps")
    for one in steps:
        table.add_row(STEP_METRICS[one.metric], f"{one.early:.2f}", f"{one.late:.2f}", f"{one.num_steps}")
    return table
