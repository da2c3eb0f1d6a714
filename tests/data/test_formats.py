"""Which files are pictures, and HEIC with and without its reader."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from saga_dist.data import formats
from saga_dist.data.formats import HEIF_FIX, open_picture, suffix, suffixes
from saga_dist.data.images import read_image
from saga_dist.errors import DataError

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
SHARED_BRAND = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40)
AVIF_SHARED_BRAND = b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif" + bytes(40)


def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "heif_is_installed", lambda: False)


def test_suffixes_are_those_of_pictures_and_not_of_videos_drawings_and_data() -> None:
    pictures = {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".ppm",
        ".pgm", ".jp2", ".tga", ".heic", ".heif",
    }  # fmt: skip
    assert pictures <= suffixes()
    assert not {".mpg", ".eps", ".pdf", ".wmf", ".h5", ".fli", ".txt", ".svg", ".mp4", ".xyz", ""} & suffixes()


@pytest.mark.parametrize(("name", "expected"), [("a.JPG", ".jpg"), ("a.b.Tif", ".tif"), ("jpg", ""), ("a.", "")])
def test_a_suffix_is_lower_case_and_the_last_one(name: str, expected: str) -> None:
    assert suffix(name) == expected


@pytest.mark.parametrize("content", [HEIC, SHARED_BRAND])
def test_heic_without_its_reader_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    without_heif(monkeypatch)
    path = tmp_path / "photo.jpg"  # a phone's HEIC is often renamed
    path.write_bytes(content)
    with pytest.raises(DataError, match="photo.jpg: a HEIC image; expected the package pillow-heif; pip install"):
        read_image(path, 8)
    assert HEIF_FIX == "pip install saga-dist[heif]"


def test_an_avif_of_the_shared_brand_is_no_heic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_heif(monkeypatch)
    path = tmp_path / "a.avif"
    path.write_bytes(AVIF_SHARED_BRAND)
    with pytest.raises(DataError, match="damaged") as caught:
        read_image(path, 8)
    assert "HEIC" not in str(caught.value)


def test_heic_is_registered_when_one_is_met_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[str] = []

    def register() -> None:
        registered.append("HEIF")
        monkeypatch.setitem(Image.OPEN, "HEIF", (lambda file, name: Image.new("RGB", (4, 4), (9, 8, 7)), None))

    monkeypatch.setattr(formats, "heif_is_installed", lambda: True)
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    read_image(tmp_path / "a.png", 4)
    assert registered == []
    (tmp_path / "a.heic").write_bytes(HEIC)
    np.testing.assert_array_equal(read_image(tmp_path / "a.heic", 2)[0, 0], [9, 8, 7])
    assert registered == ["HEIF"]


def test_the_file_is_read_from_its_beginning_whatever_was_tried_before(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.tif")
    with (tmp_path / "a.tif").open("rb") as file:
        assert open_picture(tmp_path / "a.tif", file).format == "TIFF"
