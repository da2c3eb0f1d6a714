"""``saga-dist data check``: counts, split hash, what fails to decode, and the exit code."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saga_dist.cli.main import main
from saga_dist.config import DataSection
from saga_dist.data.check import undecodable
from saga_dist.data.layouts import load_splits

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
    assert lines[5].startswith("a run with the default settings cannot start: 3 training classes; ")
    assert lines[5].endswith(
        "--fit-to-data sets what fits this data set: data.batch_size=12 rollout.pairs_per_batch=12"
    )
    assert lines[6] == "decoded 32 images, 0 cannot be used"


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
    assert len(list(undecodable(splits, jobs=3))) == 3


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
            (root / name / f"\x1b[31m{number}.jpg").touch()
    _, out, _ = run(monkeypatch, capsys, root, "--val-fraction", "0")
    assert "\x1b" not in out
    assert out.count("\\x1b[31m") == 8


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
