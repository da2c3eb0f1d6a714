"""``saga-dist data check``: counts, split hash, what fails to decode, and the exit code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saga_dist.cli import progress
from saga_dist.cli.main import main
from saga_dist.config import DataSection
from saga_dist.data.check import decode_all
from saga_dist.data.layouts import load_splits
from saga_dist.data.layouts.class_folders import NESTED, NO_CLASS
from saga_dist.retrieval.image_list import list_images

Make = Callable[..., Any]


@pytest.fixture
def make_tree(layout_makers: dict[str, Make]) -> Make:
    """Makes a tree: ``make_tree(layout, root, **options)``."""
    return lambda layout, root, **options: layout_makers[layout](root, **options)


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["saga-dist", "data", "check", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_a_sound_set_is_counted_hashed_and_decoded(
    make_tree: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tree("inshop", tmp_path)
    code, out, _ = run(monkeypatch, capsys, tmp_path, "--layout", "inshop", "--val-fraction", "0.4", "--jobs", "2")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[:4] == [
        "train 12 images 3 classes 4 to 4 images per class",
        "val 8 images 2 classes 4 to 4 images per class",
        "test 6 images 3 classes 2 to 2 images per class",
        "gallery 6 images 3 classes 2 to 2 images per class",
    ]
    data = DataSection(layout="inshop", root=str(tmp_path), val_fraction=0.4)
    assert lines[4] == f"split hash {load_splits(data, seed=0).split_hash()} (data.val_fraction 0.4, run.seed 0)"
    assert lines[5] == "decoded 32 images, 0 cannot be used"
    assert lines[6].startswith("a run with the default settings cannot start: 3 training classes; ")
    assert lines[6].endswith(
        "--fit-to-data sets what fits this data set: data.batch_size=12 rollout.pairs_per_batch=12"
    )


def test_every_bad_file_is_listed_and_the_exit_code_is_two(
    make_tree: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tree("cub", tmp_path)
    splits = load_splits(DataSection(layout="cub", root=str(tmp_path), val_fraction=0.0), seed=0)
    bad = [splits.train.root / splits.train.name(index) for index in (0, 4)]  # type: ignore[attr-defined]
    bad.append(splits.test.root / splits.test.name(11))  # type: ignore[attr-defined]
    for path, content in zip(bad, (b"", b"<html>", b"GIF89a"), strict=True):
        path.write_bytes(content)
    code, out, _ = run(monkeypatch, capsys, tmp_path, "--layout", "cub", "--val-fraction", "0", "--jobs", "1")
    assert code == 2
    listed = [line for line in out.splitlines() if line.startswith("cannot be used: ")]
    assert [line.split(": ")[1:3] for line in listed] == [
        [side, str(path)] for side, path in zip(("train", "train", "test"), bad, strict=True)
    ]
    assert "decoded 24 images, 3 cannot be used" in out
    parts = {name: splits.named(name) for name in splits.names}
    assert len(decode_all(parts, jobs=3).problems) == 3


def test_a_wrong_list_or_option_is_one_line_and_exit_code_two(
    make_tree: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tree("sop", tmp_path)
    code, out, err = run(monkeypatch, capsys, tmp_path, "--layout", "cub")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .*: images.txt is missing; expected CUB_200_2011/.*\n", err)
    code, _, err = run(monkeypatch, capsys, tmp_path, "--layout", "cubs")
    assert code == 2
    assert err.startswith("error: command line: data.layout")
    assert err.count("\n") == 1


def test_classes_are_listed_on_request_and_names_cannot_command_the_terminal(
    make_tree: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tree("aircraft", tmp_path)
    arguments = (tmp_path, "--layout", "aircraft", "--val-fraction", "0", "--no-decode")
    code, out, _ = run(monkeypatch, capsys, *arguments, "--classes")
    assert code == 0
    assert [" ".join(line.split()) for line in out.splitlines()[1:5]] == [
        "3 737-800", "3 A300B4", "3 An-12", "3 Boeing 707-320",
    ]  # fmt: skip
    assert "decoded" not in out
    root = tmp_path / "folders"
    for name in "abcd":
        (root / name).mkdir(parents=True)
        for number in range(2):
            (root / name / f"\x1b[31m{number}.jpg").write_text("no image")
    _, out, _ = run(monkeypatch, capsys, root, "--val-fraction", "0", "--all")
    assert "\x1b" not in out
    assert out.count("\\x1b[31m") == 8


def paint(path: Path, seed: int, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(blocks.repeat(4, 0).repeat(4, 1)).save(path, **options)


def paint_classes(root: Path, classes: int, images: int = 2) -> Path:
    for number in range(classes * images):
        paint(root / f"c{number // images:02d}" / f"{number}.png", number)
    return root


def test_what_is_left_out_is_counted_with_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = paint_classes(tmp_path, 4)
    for number in range(30):
        (root / "c01" / f"{number}.xyz").write_text("x")
    paint(root / "c02" / "more" / "deep.png", 99)
    code, out, _ = run(monkeypatch, capsys, root, "--val-fraction", "0")
    assert code == 0
    assert "left out 31 files: 30 x .xyz is not an image format, 1 x nested deeper than a class folder\n" in out
    assert "  30 x .xyz is not an image format: 30 in c01; first c01/0.xyz\n" in out
    assert "  1 x nested deeper than a class folder: 1 in c02/more; first c02/more/deep.png\n" in out
    assert "left out: c01/7.xyz" not in out
    _, out, _ = run(monkeypatch, capsys, root, "--val-fraction", "0", "--all")
    assert "left out: c01/7.xyz: .xyz is not an image format\n" in out


def test_embed_and_data_check_account_for_the_same_images(tmp_path: Path) -> None:
    root = paint_classes(tmp_path / "data", 4)
    for number in range(20):
        paint(root / "c01" / "more" / f"{number}.tif", 100 + number)
    paint(root / "beside.png", 99)
    (root / "linked").symlink_to(paint_classes(tmp_path / "other", 1) / "c00", target_is_directory=True)
    (root / "c00" / "up").symlink_to("..", target_is_directory=True)
    splits = load_splits(DataSection(root=str(root), val_fraction=0.0), seed=0)
    in_no_split = [one for one in splits.left_out if one.reason in (NESTED, NO_CLASS)]
    assert len(splits.train) + len(splits.test) + len(in_no_split) == len(list_images(root).files) == 31


def test_data_that_cannot_be_split_are_decoded_and_the_error_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = paint_classes(tmp_path, 3)
    (root / "c01" / "2.png").write_text("damaged")
    code, out, err = run(monkeypatch, capsys, root)
    assert code == 2
    assert out.startswith("all             6 images        3 classes  2 to 2 images per class\n")
    assert "split hash" not in out
    assert "c01/2.png: not an image, or damaged" in out
    assert "decoded 6 images, 1 cannot be used" in out
    assert err.startswith("error: ")
    assert "1 training classes; expected at least 2; add classes" in err
    assert err.count("\n") == 1


def test_what_is_left_out_is_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = paint_classes(tmp_path, 8)  # too few classes for the default batch, so that overrides are looked for
    (root / "c00" / "x.xyz").touch()
    _, out, _ = run(monkeypatch, capsys, root)
    assert "a run with the default settings cannot start" in out
    assert out.count("left out 1 file") == 1
    assert "left out" not in caplog.text


def test_only_the_first_bad_files_are_named_unless_all_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = paint_classes(tmp_path, 4)
    for path in root.glob("*/*.png"):
        path.write_text("damaged")
    for options, named in (((), 5), (("--all",), 8)):
        code, out, _ = run(monkeypatch, capsys, root, "--val-fraction", "0", *options)
        assert code == 2
        assert out.count("cannot be used: ") == named
        assert ("and 3 more (--all names them)" in out) == (named == 5)


def test_images_in_two_splits_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = paint_classes(tmp_path, 4, images=3)
    shutil.copy(root / "c00" / "0.png", root / "c03" / "copy.png")
    shutil.copy(root / "c00" / "1.png", root / "c01" / "copy.png")
    paint(root / "c02" / "smaller.jpg", 2, quality=95, subsampling=0)
    code, out, _ = run(monkeypatch, capsys, root, "--val-fraction", "0")
    assert code == 0
    assert "identical images in two splits: 1 pair\n  train c00/0.png = test c03/copy.png\n" in out
    assert "identical images in two classes: 1 pair\n  train c00/1.png = train c01/copy.png\n" in out
    assert "nearly identical images in two splits: 1 pair\n  train c00/2.png = test c02/smaller.jpg\n" in out


def test_queries_that_cannot_be_found_are_counted(
    make_tree: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = paint_classes(tmp_path / "data", 4)
    (root / "c03" / "7.png").unlink()
    _, out, _ = run(monkeypatch, capsys, root, "--val-fraction", "0")
    assert (
        "test: 1 of 3 queries cannot be found and count as misses: their class has no image besides the query (c03)\n"
        in out
    )
    shop = make_tree("inshop", tmp_path / "shop")
    item = "id_00000008"
    lines = shop.lists[0].read_text().splitlines()
    lines = [line.replace("gallery", "query") if item in line else line for line in lines]
    shop.lists[0].write_text("\n".join(lines) + "\n")
    _, out, _ = run(monkeypatch, capsys, tmp_path / "shop", "--layout", "inshop", "--val-fraction", "0")
    assert (
        f"test: 4 of 8 queries cannot be found and count as misses: their class has no image in the gallery ({item})"
        in out
    )
    paint(root / "c03" / "7.png", 7)
    _, out, _ = run(monkeypatch, capsys, root, "--val-fraction", "0")
    assert "cannot be found" not in out


def test_progress_is_printed_to_a_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = paint_classes(tmp_path, 4)
    _, _, err = run(monkeypatch, capsys, root, "--val-fraction", "0")
    assert "decoding" not in err
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    _, _, err = run(monkeypatch, capsys, root, "--val-fraction", "0")
    assert re.search(r"^decoding: image 8/8, \d{1,3}(?:,\d{3})* images/s$", err, re.MULTILINE)


def test_neither_torch_nor_ray_is_loaded(make_tree: Make, tmp_path: Path) -> None:
    make_tree("cub", tmp_path)
    code = (
        "import sys\n"
        "from saga_dist.cli.main import main\n"
        f"sys.argv = ['saga-dist', 'data', 'check', {str(tmp_path)!r}, '--layout', 'cub', '--val-fraction', '0']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print({'torch', 'ray', 'pyarrow', 'scipy', 'transformers'} & sys.modules.keys())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert "WARNING" in done.stderr
    assert "not the 100 and 100 of CUB-200-2011" in done.stderr
