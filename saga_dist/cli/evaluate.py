"""The command ``saga-dist evaluate``: evaluates a run's encoder, or any frozen encoder on a configuration's data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga_dist.errors import ConfigError
from saga_dist.utils.atomic_io import probe_output, write_atomic
from saga_dist.utils.library_logging import quiet_libraries
from saga_dist.utils.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

    from saga_dist.baselines.evaluate import Comparison
    from saga_dist.retrieval.results import SplitResult, TrainingFacts


def evaluate(
    target: Annotated[
        Path, typer.Argument(help="run directory; with --encoder the TOML file of the data", metavar="RUN|CONFIG.toml")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value …, with --encoder", metavar="[KEY=VALUE]…")
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            help="timm:NAME, hf:PATH, run:DIR or py:package.module:object, on the data of CONFIG.toml",
            metavar="KIND:NAME",
        ),
    ] = "",
    split: Annotated[str, typer.Option(help="test or val")] = "test",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write the results to this file")
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE.toml", help="also show the published rows of a table, e.g. configs/tables/table1_cub.toml"
        ),
    ] = None,
) -> None:
    """Evaluate an encoder on unseen classes: that of a run, or any frozen encoder under the same protocol."""
    quiet_libraries()
    from rich.console import Console

    console = Console()
    if json_file is not None:
        probe_output(json_file, option="--json")
    published = None
    if beside is not None:
        from saga_dist.sweep.table import load_table

        published = load_table(beside)  # an error in the file must show before minutes of encoding
    if encoder:
        result, training, text = _frozen(encoder, target, overrides or [], split, console)
    else:
        result, training, text = _run(target, overrides or [], split, console)
    if published is not None:
        from saga_dist.baselines.published_table import notes, published_table
        from saga_dist.cli.console import widen

        widen(console, 140)
        console.print(published_table(published, result, name=encoder or str(target), training=training))
        for note in notes(published, result, num_runs=1 if training is not None and training.optimizer_steps else 0):
            console.print(note, highlight=False, markup=False, soft_wrap=True)
    if json_file is not None:
        write_atomic(json_file, f"{text}\n".encode(), option="--json")


def _run(
    run: Path, overrides: list[str], split: str, console: Console
) -> tuple[SplitResult, TrainingFacts | None, str]:
    if overrides:
        raise ConfigError(f"override {overrides[0]!r}", where="command line", expected="overrides with --encoder only")
    from saga_dist.cli.console import results_notes, results_table
    from saga_dist.runtime.run import evaluate_encoder

    result = evaluate_encoder(run, split)
    console.print(results_table([result], split=split, title=f"{run} ({split})"))
    for note in results_notes([result], split=split):
        console.print(printable(note), highlight=False, markup=False, soft_wrap=True)
    return result.splits[split], result.training, result.model_dump_json(indent=2)


def _frozen(
    encoder: str, config: Path, overrides: list[str], split: str, console: Console
) -> tuple[SplitResult, TrainingFacts | None, str]:
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from saga_dist.baselines.frozen_encoder import parse_spec
    from saga_dist.config import load_config

    parse_spec(encoder)  # a wrong value must show before the seconds that torch takes to load
    resolved = load_config(config, overrides)
    from saga_dist.baselines.evaluate import compare

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("encoding", total=None)
        row = compare(
            encoder, resolved, split, on_progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
    _print(row, console)
    return row.result, row.training, row.model_dump_json(indent=2)


def _print(row: Comparison, console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from saga_dist.cli.console import widen
    from saga_dist.retrieval.run_comparison import interval_remark
    from saga_dist.retrieval.training_text import TRAINING, training_cells

    card, result = row.encoder, row.result
    # A frozen encoder has no runs; the encoder of a run is one of many that its configuration could have given.
    remark = interval_remark(num_classes=result.num_classes, num_seeds=1 if row.training.optimizer_steps else 0)
    table = Table(
        title="\n" + escape(printable(f"{card.spec} on {row.data} ({row.split})")),
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    low, high = result.confidence_interval
    cells = {
        "backbone": escape(printable(card.backbone)),
        "dim": f"{card.dimension:,}",
        "params": f"{card.parameters / 1e6:.1f} M",
        "px": f"{card.image_height}×{card.image_width}",
        "R@1": f"{100 * result.recall_at_1:.1f}",
        "95 %": f"{100 * low:.1f}–{100 * high:.1f}",
        "R@2": f"{100 * result.recall_at_2:.1f}",
        "R@4": f"{100 * result.recall_at_4:.1f}",
        "R@8": f"{100 * result.recall_at_8:.1f}",
        "NMI": f"{result.nmi:.3f}",
        "MAP@R": f"{100 * (result.map_at_r or 0.0):.1f}",
        "ms": f"{row.ms_per_image:.1f}",
    }
    for heading in cells:
        table.add_column(heading, justify="left" if heading == "backbone" else "right", no_wrap=heading != "backbone")
    table.add_row(*cells.values())
    widen(console, 140)
    console.print(table)
    notes = {
        "pre-training": card.pretraining,
        "pooling": f"{card.pooling}; {card.preprocessing}",
        "training": ", ".join(map(" ".join, zip(TRAINING, training_cells([row.training]), strict=True))),
        "queries": f"{result.num_queries:,} of {result.num_classes:,} unseen classes"
        + (f"; {result.unfindable_remark}" if result.unfindable_remark else ""),
        "95 %": "over test classes" + (f"; {remark}" if remark else ""),
        "ms": f"an image on {row.device}, in batches, decoding left out",
    }
    for name, text in notes.items():
        console.print(printable(f"{name:<13}{text}"), highlight=False, markup=False, soft_wrap=True)
