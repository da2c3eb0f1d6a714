"""Images as the encoder, its exports and the searches are given them."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from bad_inputs.row import BadInput, Workspace
from PIL import Image

from saga_dist.models.encoder import Encoder
from saga_dist.models.families import resolve_family
from saga_dist.models.pooler import Pooler

SIDE = 80
PIXELS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@cache
def encoder(model: Path) -> Encoder:
    """An encoder with the tower of a model, which takes a fraction of a second to load."""
    return Encoder(resolve_family(model).load_tower(), Pooler(width=128, embedding_dim=16), image_size=SIDE)


def encodes(images: Callable[[], Any]) -> Callable[[Workspace], Any]:
    """An act that encodes the images that a function makes."""
    return lambda workspace: encoder(workspace.model).encode(images())


def tensor(values: Any) -> Any:
    import torch

    return torch.as_tensor(np.asarray(values))


def jpeg() -> bytes:
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "JPEG")
    return content.getvalue()


def cut_off(workspace: Workspace) -> None:
    (workspace.folder / "a.jpg").write_bytes(jpeg()[:600])


def closed(workspace: Workspace) -> Any:
    Image.fromarray(PIXELS).save(workspace.folder / "a.png")
    image = Image.open(workspace.folder / "a.png")
    image.close()
    return encoder(workspace.model).encode(image)


def searchable(workspace: Workspace) -> None:
    """Writes an encoder, an index of eight images and a query."""
    encoder(workspace.model).save(workspace.folder / "encoder")
    workspace.image_folder("photos", classes=4, images=2)
    Image.fromarray(PIXELS).save(workspace.folder / "query.png")
    _index(workspace)


def _index(workspace: Workspace) -> None:
    from saga_dist.models.encoder import load
    from saga_dist.retrieval.embed import embed_folder
    from saga_dist.retrieval.identity import read_identity
    from saga_dist.retrieval.index import build_index
    from saga_dist.retrieval.tables import read_embeddings

    model, out = workspace.folder / "encoder", workspace.folder / "photos.arrow"
    embed_folder(load(model), read_identity(model), workspace.folder / "photos", out, jobs=1)
    build_index(read_embeddings(out), workspace.folder / "index")


def with_empty_input(workspace: Workspace) -> None:
    searchable(workspace)
    workspace.patch.setattr("sys.stdin", io.StringIO("\n\n"))


ROWS = [
    BadInput("an array of doubles from -1 to 1", "values of an array", encodes(lambda: PIXELS / 127.5 - 1),
             ("float64", "from -1 to 1", "0 to 1", "undo the normalisation")),
    BadInput("an array of floats from 0 to 255", "values of an array", encodes(lambda: PIXELS.astype(np.float32)),
             ("float32", "to 255", "floating values from 0 to 1")),
    BadInput("an array with values that are not numbers", "values of an array",
             encodes(lambda: np.full((SIDE, SIDE, 3), np.nan)), ("not finite",)),
    BadInput("an array of 64-bit integers", "values of an array", encodes(lambda: PIXELS.astype(np.int64)),
             ("int64 array of shape (80, 80, 3)", "uint8 from 0 to 255", ".astype(np.uint8)")),
    BadInput("an array of 16-bit integers", "values of an array", encodes(lambda: PIXELS.astype(np.uint16)),
             ("uint16", "uint8 from 0 to 255")),
    BadInput("an array of truth values", "values of an array", encodes(lambda: PIXELS > 0), ("bool array",)),
    BadInput("an array of objects", "values of an array", encodes(lambda: [PIXELS.astype(object)]), ("object array",)),
    BadInput("an array with the channels first", "shape of an array", encodes(lambda: np.moveaxis(PIXELS, -1, 0)),
             ("(3, 80, 80)", "[height, width, channels]", ".transpose(1, 2, 0)")),
    BadInput("an array of two channels", "shape of an array", encodes(lambda: PIXELS[..., :2]),
             ("(80, 80, 2)", "1, 3 or 4 channels")),
    BadInput("the rows of an array", "shape of an array", encodes(lambda: list(PIXELS)),
             ("image 0: uint8 array of shape (80, 3)", "not its rows")),
    BadInput("an array of no height", "shape of an array", encodes(lambda: PIXELS[:0]), ("(0, 80, 3)",)),
    BadInput("a batch within a list", "shape of an array", encodes(lambda: [PIXELS, PIXELS[None]]),
             ("image 1:", "(1, 80, 80, 3)", "list(batch)")),
    BadInput("a single number", "shape of an array", encodes(lambda: np.uint8(3)), ("a uint8", "a path, a PIL image")),
    BadInput("an array of five dimensions", "shape of an array", encodes(lambda: PIXELS[None, None]),
             ("(1, 1, 80, 80, 3)",)),
    BadInput("a tensor with the channels last", "tensor", encodes(lambda: tensor(PIXELS)),
             ("torch tensor of shape (80, 80, 3)", "[channels, height, width]", ".permute(2, 0, 1)")),
    BadInput("a normalised tensor", "tensor", encodes(lambda: tensor(np.moveaxis(PIXELS / 127.5 - 1, -1, 0))),
             ("from -1 to 1", "undo the normalisation")),
    BadInput("a tensor of 32-bit integers", "tensor",
             encodes(lambda: tensor(np.moveaxis(PIXELS, -1, 0).astype(np.int32))), ("int32",)),
    BadInput("encoded bytes", "no image", encodes(jpeg), ("a bytes", "PIL.Image.open(io.BytesIO(data))")),
    BadInput("nothing", "no image", encodes(lambda: None), ("a NoneType", "a path, a PIL image")),
    BadInput("a dictionary of a data set's row", "no image", encodes(lambda: [{"image": PIXELS}]),
             ("image 0: a dict",)),
    BadInput("a list within a list", "no image", encodes(lambda: [[PIXELS]]), ("image 0: a list", "one flat list")),
    BadInput("an address on the web", "image file", encodes(lambda: "https://example.org/a.jpg"),
             ("https:/example.org/a.jpg: cannot read the image",)),
    BadInput("a folder in place of an image", "image file",
             lambda workspace: encoder(workspace.model).encode(workspace.folder), ("not a regular file",)),
    BadInput("a file that ends too early", "image file", lambda workspace: encoder(workspace.model).encode("a.jpg"),
             ("a.jpg: damaged image",), cut_off),
    BadInput("an image whose file was closed", "image file", closed, ("image: damaged image",)),
    BadInput("a PIL image with more pixels than are decoded", "image size",
             encodes(lambda: Image.new("1", (8001, 8000))), ("8001 x 8000 pixels", "at most 64 megapixels")),
    BadInput("a PIL image without pixels", "image size", encodes(lambda: [Image.new("RGB", (7, 0))]),
             ("image 0: 7 x 0 pixels",)),
    BadInput("batches of no images", "argument", lambda workspace: encoder(workspace.model).encode([], batch_size=0),
             ("batch_size = 0", "1 or more")),
    BadInput("a query that is not there", "search", "search index query.png nowhere.png", ("nowhere.png",), searchable),
    BadInput("no query on standard input", "search", "search index -", ("no paths of images", "one a line"),
             with_empty_input),
    BadInput("a contact sheet of two queries", "search", "search index query.png query.png --sheet a.png",
             ("--sheet", "expected one"), searchable),
    BadInput("more neighbours than the index has images", "search", "search index query.png -k 1000",
             ("note: -k 1,000", "8 images"), searchable, "note"),
]  # fmt: skip
