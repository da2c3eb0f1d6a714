"""The command ``saga-dist index``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from saga_dist.cli.arguments import print_line
from saga_dist.cli.encoder import progress_bar

if TYPE_CHECKING:
    from saga_dist.retrieval.index import Kind


def index(
    embeddings: Annotated[Path, typer.Argument(help="file from saga-dist embed", metavar="EMBEDDINGS")],
    out: Annotated[Path, typer.Option("--out", help="new folder")],
    kind: Annotated[str, typer.Option(help="flat (exact), hnsw or ivf")] = "flat",
) -> None:
    """Build a faiss index of embeddings; print the recall of hnsw and ivf against exact search."""
    from saga_dist.retrieval.index import RECALL_AT, build_index
    from saga_dist.retrieval.tables import read_embeddings
    from saga_dist.utils.atomic_io import require_new
    from saga_dist.utils.directory_owner import owned_output

    require_new(out, option="--out")  # known before the embeddings are read
    with owned_output(out, option="--out"), progress_bar() as progress:
        table = read_embeddings(embeddings)
        task = progress.add_task("indexing", total=None)
        done = build_index(
            table,
            out,
            kind=cast("Kind", kind),
            on_progress=lambda number, total: progress.update(task, completed=number, total=total),
        )
    print_line(
        f"{out}: {kind} index of {done.num_images:,} images, {done.width} wide, built in {done.build_s:.1f} s, "
        f"{done.num_bytes / 1e6:.1f} MB"
    )
    if done.num_queries:
        print_line(
            f"recall@{RECALL_AT} against exact {done.recall:.4f} ({done.num_queries:,} queries), "
            f"{done.search_us:.0f} µs a query; exact {done.exact_us:.0f} µs"
        )
