"""One table of inputs and one outcome each, for the encoder, its ONNX export and its sentence-transformers export."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import saga_dist
from saga_dist.data.images import MAX_PIXELS
from saga_dist.errors import DataError
from saga_dist.export.folder import FORMATS, export_encoder
from saga_dist.models.encoder import Encoder
from saga_dist.models.families import resolve_family
from saga_dist.models.pooler import Pooler

pytestmark = pytest.mark.integration

SIDE = 80
RGB = [np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for seed in range(3)]
GREY = RGB[0][..., 0]
ALPHA = np.full((SIDE, SIDE), 255, np.uint8)
ALPHA[40:] = 0
ON_WHITE = RGB[0].copy()
ON_WHITE[40:] = 255


@pytest.fixture(scope="module")
def encoders(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """``encode`` of every encoder, by format."""
    folder = tmp_path_factory.mktemp("encoders")
    tower = resolve_family(tiny_checkpoint).load_tower()
    Encoder(tower, Pooler(width=128, embedding_dim=16, seed=1), image_size=SIDE).save(folder / "model")
    for form in FORMATS:
        export_encoder(folder / "model", folder / form, form=form)
    from saga_dist.export.onnx_encoder import OnnxEncoder
    from saga_dist.export.st_module import load_model

    model = load_model(folder / "sentence-transformers", device="cpu")
    return {
        "hf": saga_dist.load(folder).encode,
        "onnx": OnnxEncoder(folder / "onnx").encode,
        "sentence-transformers": lambda images: model.encode(images, show_progress_bar=False),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images of RGB as 0.png, 1.png, 2.png, and 0.png turned as its EXIF data says."""
    folder = tmp_path_factory.mktemp("files")
    for number, pixels in enumerate(RGB):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray(RGB[0]).transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    return folder


@dataclass(frozen=True)
class Accepted:
    """An input, made in a folder with image files, and the plain images that it stands for; one if it is not a list."""

    name: str
    make: Callable[[Path], Any]
    images: tuple[np.ndarray, ...]
    is_single: bool = True


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).movedim(-1, -3)


ACCEPTED = [
    Accepted("path as text", lambda files: str(files / "0.png"), (RGB[0],)),
    Accepted("path", lambda files: files / "0.png", (RGB[0],)),
    Accepted("path of a turned file", lambda files: files / "turned.png", (RGB[0],)),
    Accepted("PIL RGB", lambda files: Image.fromarray(RGB[0]), (RGB[0],)),
    Accepted("PIL, turned", lambda files: Image.open(files / "turned.png"), (RGB[0],)),
    Accepted("PIL RGBA", lambda files: Image.fromarray(np.dstack([RGB[0], ALPHA])), (ON_WHITE,)),
    Accepted("PIL grey", lambda files: Image.fromarray(GREY), (np.dstack([GREY] * 3),)),
    Accepted("PIL grey with alpha", lambda files: Image.fromarray(GREY).convert("LA"), (np.dstack([GREY] * 3),)),
    Accepted("PIL premultiplied grey", lambda files: Image.fromarray(GREY).convert("LA").convert("La"),
             (np.dstack([GREY] * 3),)),
    Accepted("PIL 16-bit grey", lambda files: Image.fromarray(GREY.astype(np.uint16) << 8), (np.dstack([GREY] * 3),)),
    Accepted("PIL of floats", lambda files: Image.fromarray((GREY / 255).astype(np.float32)), (np.dstack([GREY] * 3),)),
    Accepted("PIL black and white", lambda files: Image.fromarray(ALPHA).convert("1"), (np.dstack([ALPHA] * 3),)),
    Accepted("array", lambda files: RGB[0], (RGB[0],)),
    Accepted("array, read backwards", lambda files: RGB[0][:, ::-1][:, ::-1], (RGB[0],)),
    Accepted("array, grey, one channel", lambda files: GREY[..., None], (np.dstack([GREY] * 3),)),
    Accepted("array, alpha", lambda files: np.dstack([RGB[0], ALPHA]), (ON_WHITE,)),
    Accepted("array, float32", lambda files: (RGB[0] / 255).astype(np.float32), (RGB[0],)),
    Accepted("array, float64", lambda files: RGB[0] / 255, (RGB[0],)),
    Accepted("tensor", lambda files: tensor(RGB[0]), (RGB[0],)),
    Accepted("tensor, float32", lambda files: tensor(RGB[0]) / 255, (RGB[0],)),
    Accepted("tensor with a gradient", lambda files: (tensor(RGB[0]) / 255).requires_grad_(), (RGB[0],)),
    Accepted("tensor, bfloat16", lambda files: torch.ones(3, SIDE, SIDE, dtype=torch.bfloat16),
             (np.full((SIDE, SIDE, 3), 255, np.uint8),)),
    Accepted("list of one", lambda files: [RGB[0]], (RGB[0],), is_single=False),
    Accepted("tuple", lambda files: (RGB[0], RGB[1]), (RGB[0], RGB[1]), is_single=False),
    Accepted("array of paths", lambda files: np.array([str(files / "0.png"), str(files / "1.png")]), (RGB[0], RGB[1]),
             is_single=False),
    Accepted("mixture", lambda files: [str(files / "0.png"), tensor(RGB[1]), Image.fromarray(RGB[2]), RGB[0] / 255],
             (RGB[0], RGB[1], RGB[2], RGB[0]), is_single=False),
]  # fmt: skip

WITHOUT_SENTENCE_TRANSFORMERS = [
    Accepted("array, grey", lambda files: GREY, (np.dstack([GREY] * 3),)),
    Accepted("tensor, grey", lambda files: torch.from_numpy(GREY), (np.dstack([GREY] * 3),)),
    Accepted("batch", lambda files: np.stack(RGB), tuple(RGB), is_single=False),
    Accepted("batch, float32", lambda files: (np.stack(RGB) / 255).astype(np.float32), tuple(RGB), is_single=False),
    Accepted("batch tensor", lambda files: tensor(np.stack(RGB)), tuple(RGB), is_single=False),
    Accepted("generator", lambda files: iter([files / "0.png", RGB[1]]), (RGB[0], RGB[1]), is_single=False),
    Accepted("no image", lambda files: [], (), is_single=False),
    Accepted("empty batch", lambda files: np.zeros((0, SIDE, SIDE, 3), np.uint8), (), is_single=False),
]  # fmt: skip
"""Inputs that SentenceTransformer.encode does not pass on as they are.

It takes a matrix for sound, an array of four dimensions for a film, and everything but a list or a tuple for one input.
"""


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("row", ACCEPTED, ids=lambda row: row.name)
def test_every_encoder_understands_an_input_in_the_same_way(
    row: Accepted, form: str, encoders: dict[str, Any], files: Path
) -> None:
    _check(row, encoders[form], encoders["hf"], files)


@pytest.mark.parametrize("form", ["hf", "onnx"])
@pytest.mark.parametrize("row", WITHOUT_SENTENCE_TRANSFORMERS, ids=lambda row: row.name)
def test_a_matrix_is_a_grey_image_and_a_batch_or_an_iterator_is_several_images(
    row: Accepted, form: str, encoders: dict[str, Any], files: Path
) -> None:
    _check(row, encoders[form], encoders["hf"], files)


def _check(row: Accepted, encode: Any, reference: Any, files: Path) -> None:
    found = encode(row.make(files))
    assert found.dtype == np.float32
    assert found.shape == ((16,) if row.is_single else (len(row.images), 16))
    expected_IE = reference(list(row.images))
    np.testing.assert_allclose(found[None] if row.is_single else found, expected_IE, atol=2e-5)


REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a normalised array": (RGB[0] / 127.5 - 1, ("float64 array", "values from -1 to 1", "undo the normalisation")),
    "floats from 0 to 255": (RGB[0].astype(np.float32), ("values from 0 to 255", "floating values from 0 to 1")),
    "not a number": (np.full((SIDE, SIDE, 3), np.nan), ("not finite",)),
    "integers of another width": (RGB[0].astype(np.int64), ("int64 array", "uint8 from 0 to 255", "astype")),
    "truth values": (RGB[0] > 9, ("bool array",)),
    "an array with channels first": (
        np.moveaxis(RGB[0], -1, 0),
        ("(3, 80, 80)", "[height, width, channels]", ".transpose(1, 2, 0)"),
    ),
    "a tensor with channels last": (
        torch.from_numpy(RGB[0]),
        ("torch tensor of shape (80, 80, 3)", "[channels, height, width]", ".permute(2, 0, 1)"),
    ),
    "two channels": (RGB[0][..., :2], ("(80, 80, 2)", "1, 3 or 4 channels")),
    "a row of pixels": (RGB[0][0], ("(80, 3)", "not its rows")),
    "no pixels": (np.zeros((0, SIDE, 3), np.uint8), ("(0, 80, 3)",)),
    "a PIL image without pixels": (Image.new("RGB", (0, 5)), ("0 x 5 pixels",)),
    "a PIL image too large to decode": (Image.new("1", (MAX_PIXELS // 8000 + 1, 8000)), ("at most 64 megapixels",)),
    "a missing file": ("nowhere.jpg", ("nowhere.jpg: cannot read the image",)),
    "encoded bytes": (b"\xff\xd8\xff", ("a bytes", "io.BytesIO")),
    "a dictionary": ({"image": RGB[0]}, ("a dict", "a PIL image")),
    "nothing": (None, ("a NoneType",)),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("as_list", [False, True], ids=["alone", "in a list"])
@pytest.mark.parametrize("name", REFUSED)
def test_every_encoder_refuses_what_is_no_image_in_one_line(
    name: str, as_list: bool, form: str, encoders: dict[str, Any]
) -> None:
    image, words = REFUSED[name]
    # SentenceTransformer.encode itself refuses what it takes for a text, a sound or a film.
    kinds = (DataError, ValueError) if form == "sentence-transformers" else DataError
    with pytest.raises(kinds) as caught:
        encoders[form]([image] if as_list else image)
    line = str(caught.value)
    assert "\n" not in line
    if isinstance(caught.value, DataError):
        assert [word for word in words if word not in line] == []
    else:
        assert re.match(r"Modality '(text|audio)' is not supported by this SentenceTransformer model", line)


@pytest.mark.parametrize("form", FORMATS)
def test_the_error_names_the_image(form: str, encoders: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^image 1: int64 array"):
        encoders[form]([RGB[0], RGB[1].astype(np.int64)])


@pytest.mark.parametrize("form", ["hf", "onnx"])
def test_a_batch_in_a_list_is_refused(form: str, encoders: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"shape \(3, 80, 80, 3\).*list\(batch\)"):
        encoders[form]([np.stack(RGB)])


@pytest.mark.parametrize("images", [np.stack(RGB), (image for image in RGB)], ids=["batch", "generator"])
def test_sentence_transformers_never_gives_one_vector_for_several_images(images: Any, encoders: dict[str, Any]) -> None:
    with pytest.raises((DataError, ValueError), match=r"one flat list of images|Modality 'video' is not supported"):
        encoders["sentence-transformers"](images)
