"""Searching an index with images, and a contact sheet of the matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from saga_dist.data.images import read_image
from saga_dist.errors import DataError
from saga_dist.retrieval.embed import BATCH_SIZE, ImageEncoder
from saga_dist.retrieval.identity import ModelIdentity
from saga_dist.retrieval.index import Index

_TILE, _GAP, _TEXT = 160, 12, 34
_COLUMNS = 6
_PAPER, _INK, _FRAME, _MISSING = (250, 250, 250), (30, 30, 34), (40, 90, 200), (210, 210, 214)


@dataclass(frozen=True, slots=True)
class Match:
    """One image found by a search."""

    id: str
    """Path relative to the index's folder of images."""
    path: Path
    """Path of the image."""
    score: float
    """Cosine similarity with the query, in [-1, 1]."""


def search_images(
    index: Index, encoder: ImageEncoder, identity: ModelIdentity, queries: Sequence[Path], k: int
) -> Iterator[tuple[Path, list[Match]]]:
    """Yields each query with the k images of an index that are nearest to it, best first.

    Args:
        index: index to search.
        encoder: encoder that the index was made with.
        identity: identity of that encoder.
        queries: image files, which are read and encoded in batches.
        k: number of images, at least 1; one larger than the index stands for all its images.

    Raises:
        ModelError: the index was made with another model.
        DataError: a query cannot be read, or k is less than 1.
    """
    index.model.refuse_other(identity, where=f"the index of {index.root}")
    for start in range(0, len(queries), BATCH_SIZE):
        batch = queries[start : start + BATCH_SIZE]
        embeddings_IE = encoder.encode([read_image(query, encoder.image_size) for query in batch])
        for query, found in zip(batch, index.search(embeddings_IE, k), strict=True):
            yield query, [Match(identifier, index.root / identifier, score) for identifier, score in found]


def contact_sheet(query: Path, matches: Sequence[Match]) -> Image.Image:
    """Returns an RGB image of the query (framed) and its matches, with rank, score and name below each."""
    tiles = [_tile(query, "query", query.name, framed=True)]
    tiles += [_tile(match.path, f"{rank}   {match.score:.4f}", match.id) for rank, match in enumerate(matches, start=1)]
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    width, height = _TILE + _GAP, _TILE + _TEXT + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    for position, tile in enumerate(tiles):
        sheet.paste(tile, (_GAP + position % columns * width, _GAP + position // columns * height))
    return sheet


def _tile(path: Path, title: str, name: str, *, framed: bool = False) -> Image.Image:
    tile = Image.new("RGB", (_TILE, _TILE + _TEXT), _PAPER)
    draw = ImageDraw.Draw(tile)
    try:
        tile.paste(Image.fromarray(read_image(path, _TILE)), (0, 0))
    except DataError:
        # The image may have been deleted since it was indexed; its name is still useful.
        draw.rectangle((0, 0, _TILE - 1, _TILE - 1), fill=_MISSING)
        draw.text((10, _TILE // 2), "cannot be read", fill=_INK, font=ImageFont.load_default(12))
    if framed:
        draw.rectangle((0, 0, _TILE - 1, _TILE - 1), outline=_FRAME, width=4)
    font = ImageFont.load_default(12)
    draw.text((2, _TILE + 2), title, fill=_FRAME if framed else _INK, font=font)
    draw.text((2, _TILE + 17), _shortened(name, font), fill=_INK, font=font)
    return tile


def _shortened(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Returns the name cut at its beginning to the width of a tile, because the end of a path identifies the file."""
    shown = "".join(character if character.isprintable() else "?" for character in name)[-200:]
    full = len(shown) == len(name)
    while shown and font.getlength(shown if full else f"…{shown}") > _TILE - 4:
        shown, full = shown[1:], False
    return shown if full else f"…{shown}"
