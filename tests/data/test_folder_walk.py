"""Everything in a folder is an image, a folder, or left out with a reason; links end and nothing is read twice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from saga_dist.data import folder_walk
from saga_dist.data.folder_walk import EMPTY, HIDDEN, NO_SUFFIX, READ_ALREADY, find_images, list_folder
from saga_dist.data.left_out import LeftOut, by_folder, refuse_unreadable, summary
from saga_dist.errors import DataError


def paint(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def deny(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Makes the folders of a name unreadable, also for the superuser."""
    scandir: Callable[..., object] = os.scandir

    def denied(folder: Path) -> object:
        if Path(folder).name == name:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)


def test_every_entry_is_an_image_or_has_a_reason(tmp_path: Path) -> None:
    paint(tmp_path / "a" / "b" / "x.PNG")
    paint(tmp_path / "y.tif")
    paint(tmp_path / ".hidden" / "z.png")
    for name in (".DS_Store", "readme.TXT", "LICENSE", "empty.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "gone").symlink_to("nowhere")
    content = find_images(tmp_path)
    assert [found.path for found in content.images] == ["a/b/x.PNG", "y.tif"]
    assert content.left_out == [
        LeftOut(".DS_Store", HIDDEN),
        LeftOut(".hidden", HIDDEN),
        LeftOut("LICENSE", NO_SUFFIX),
        LeftOut("empty.jpg", EMPTY, "unusable"),
        LeftOut("gone", "a link to nowhere"),
        LeftOut("gone.jpg", "a link to nowhere", "unusable"),
        LeftOut("readme.TXT", ".txt is not an image format"),
    ]


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    paint(tmp_path / "outside" / "x.png")
    root = tmp_path / "root"
    paint(root / "b" / "y.png")
    (root / "a").symlink_to("b", target_is_directory=True)  # comes first by name; the folder itself wins
    (root / "z").symlink_to("b", target_is_directory=True)
    (root / "b" / "up").symlink_to(root, target_is_directory=True)
    (root / "linked").symlink_to(tmp_path / "outside", target_is_directory=True)
    (root / "self").symlink_to("self")
    content = find_images(root)
    assert [found.path for found in content.images] == ["b/y.png", "linked/x.png"]
    assert content.images[1].real == (tmp_path / "outside" / "x.png").resolve()
    assert [(one.path, one.reason) for one in content.left_out] == [
        ("a", READ_ALREADY),
        ("b/up", READ_ALREADY),
        ("self", "a link to nowhere"),
        ("z", READ_ALREADY),
    ]


def test_many_links_between_folders_take_no_longer_than_the_folders(tmp_path: Path) -> None:
    for number in range(8):  # 8! ways through them
        paint(tmp_path / str(number) / "x.png")
        for other in range(8):
            (tmp_path / str(number) / f"to_{other}").symlink_to(f"../{other}", target_is_directory=True)
    content = find_images(tmp_path)
    assert len(content.images) == 8
    assert Counter(one.reason for one in content.left_out) == {READ_ALREADY: 64}


def test_an_unreadable_folder_is_reported_and_can_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "a" / "x.png")
    paint(tmp_path / "b" / "x.png")
    deny(monkeypatch, "b")
    content = find_images(tmp_path)
    assert [found.path for found in content.images] == ["a/x.png"]
    with pytest.raises(DataError, match=r"/b: cannot be read \(Permission denied\); expected a readable folder"):
        refuse_unreadable(content.left_out, tmp_path)
    refuse_unreadable([LeftOut("x.txt", "…")], tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_root_that_is_gone_or_a_file_is_unreadable(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    content = list_folder(tmp_path / name)
    assert [(one.path, one.kind) for one in content.left_out] == [(".", "unreadable")]


def test_the_summary_counts_by_reason_and_the_lines_by_folder() -> None:
    left_out = [LeftOut(f"c{number % 7}/{number}.xyz", ".xyz is not an image format") for number in range(30)]
    left_out += [LeftOut("c0/.x", HIDDEN), LeftOut(".y", HIDDEN)]
    assert summary(left_out) == "left out 32 files: 30 x .xyz is not an image format, 2 x hidden"
    assert list(by_folder(left_out)) == [
        "30 x .xyz is not an image format: 5 in c0, 5 in c1, 4 in c2, 4 in c3, 4 in c4, the others in 2 more folders; "
        "first c0/0.xyz",
        "2 x hidden: 1 in c0, 1 in .; first .y",
    ]
    assert summary([LeftOut("a", HIDDEN)]) == "left out 1 file: 1 x hidden"
    many = [LeftOut(f"a.{number}", f".{number} is not an image format") for number in range(9)]
    assert summary(many).endswith("1 x .4 is not an image format, 4 x other reasons")


def test_heic_is_left_out_by_name_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.HEIC").write_bytes(b"x")
    monkeypatch.setattr(folder_walk, "heif_is_installed", lambda: False)
    assert find_images(tmp_path).left_out == [
        LeftOut("a.HEIC", ".heic needs `pip install saga-dist[heif]`", "unusable")
    ]
    monkeypatch.setattr(folder_walk, "heif_is_installed", lambda: True)
    assert [found.path for found in find_images(tmp_path).images] == ["a.HEIC"]
