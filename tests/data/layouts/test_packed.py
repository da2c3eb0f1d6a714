"""Data sets within larger files: tar shards of WebDataset, and what Hugging Face ``datasets`` 5.2 saved.

``tests/data/hf_dataset`` was written by ``save_to_disk``: PNG images of 12 x 10 pixels drawn with numpy's default
generator, seeds 0 (train: classes 0 to 3), 1 (test: classes 4 and 5) and 3 (whole), two images of each class.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from data.shards import write_shard
from PIL import Image

from saga_dist.config import parse_config
from saga_dist.data.layouts import load_splits
from saga_dist.data.layouts.detect import detect_layout
from saga_dist.data.layouts.division import SplitOptions
from saga_dist.data.layouts.folder import load_folder
from saga_dist.data.layouts.hf_dataset import load_hf_dataset
from saga_dist.data.layouts.webdataset import load_webdataset
from saga_dist.errors import DataError
from saga_dist.testing import check_layout

SAVED = Path(__file__).resolve().parents[1] / "hf_dataset"
OPTIONS = SplitOptions(val_fraction=0, image_size=32)


def picture(seed: int) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def samples(classes: list[str], *, ending: str = "cls", images: int = 2) -> dict[str, bytes]:
    """Members of a shard: ``images`` samples of each class, one behind the other."""
    members: dict[str, bytes] = {}
    for name in classes:
        for number in range(images):
            label = json.dumps({"species": name}).encode() if ending == "json" else f"{name}\n".encode()
            key = f"{name}_{number}"
            members |= {f"{key}.png": picture(len(members)), f"{key}.{ending}": label, f"{key}.seg.png": picture(99)}
    return members


def test_images_of_shards_are_those_of_the_files(tmp_path: Path) -> None:
    classes = ["finch", "owl", "tit", "wren"]
    members = samples(classes)
    write_shard(tmp_path / "shards" / "0.tar", dict(list(members.items())[:12]))
    write_shard(tmp_path / "shards" / "1.tar", dict(list(members.items())[12:]))
    for name, content in members.items():
        if name.count(".") == 1 and name.endswith(".png"):
            file = tmp_path / "folder" / name.partition("_")[0] / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    packed, plain = load_webdataset(tmp_path / "shards", OPTIONS), load_folder(tmp_path / "folder", OPTIONS)
    for split in ("train", "test"):
        found, expected = packed.named(split), plain.named(split)
        assert found.class_names == expected.class_names
        np.testing.assert_array_equal(found.labels_I, expected.labels_I)
        for index in range(len(expected)):
            np.testing.assert_array_equal(found.image(index), expected.image(index))
            assert found.original(index).tobytes() == expected.original(index).tobytes()


def test_shards_meet_the_contract_of_layouts(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-000.tar", samples(["finch", "owl"]))
    write_shard(tmp_path / "val" / "000.tar", samples(["tit", "wren"]))
    write_shard(tmp_path / "Test_0.tar", samples(["crow"]))
    check_layout(load_webdataset, tmp_path)
    splits = load_webdataset(tmp_path, OPTIONS)
    names = [splits.named(split).class_names for split in ("train", "val", "test")]
    assert names == [("finch", "owl"), ("tit", "wren"), ("crow",)]
    assert detect_layout(tmp_path) == "webdataset"


def test_numbers_are_sorted_by_their_value(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", samples([str(number) for number in (10, 9, 2, 1)]))
    splits = load_webdataset(tmp_path, OPTIONS)
    assert (splits.train.class_names, splits.test.class_names) == (("1", "2"), ("9", "10"))


def test_fields_of_a_shard_are_keys_of_the_configuration(tmp_path: Path) -> None:
    members = samples(["a", "b", "c", "d"], ending="json")
    write_shard(tmp_path / "0.tar", {name.replace(".png", ".photo"): content for name, content in members.items()})
    data = {"layout": "webdataset", "root": str(tmp_path), "val_fraction": 0.0, "image_size": 32}
    fields = {"image_field": "photo", "label_field": "json:species"}
    splits = load_splits(parse_config({"data": data | fields}, where="test").data, seed=0)
    assert (splits.train.class_names, splits.test.class_names) == (("a", "b"), ("c", "d"))
    assert [splits.train.name(index) for index in range(2)] == ["0.tar/a_0.photo", "0.tar/a_1.photo"]


def test_a_sample_without_an_image_is_left_out_and_counted(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {**samples(["a", "b", "c", "d"]), "notes.txt": b"words"})
    (left_out,) = load_webdataset(tmp_path, OPTIONS).left_out
    assert (left_out.path, left_out.reason) == ("0.tar/notes", "samples without an image")


def test_a_shard_cut_off_after_it_was_listed_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    write_shard(path, samples(["a", "b", "c", "d"]))
    images = load_webdataset(tmp_path, OPTIONS).test
    path.write_bytes(path.read_bytes()[: images.places[-1].offset + 5])  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="ends within an image.*d_1.png"):
        images.image(len(images) - 1)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read .No such file"):
        images.image(0)


def drawn(seed: int, count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (12, 10, 3), dtype=np.uint8) for _ in range(count)]


def test_a_saved_dictionary_gives_its_own_splits_and_pixels() -> None:
    check_layout(load_hf_dataset, SAVED / "splits", OPTIONS)
    splits = load_hf_dataset(SAVED / "splits", OPTIONS)
    assert splits.train.class_names == ("finch", "robin", "tit", "wren")
    assert splits.test.class_names == ("crow", "owl")
    wren, owl = splits.train.class_names.index("wren"), splits.test.class_names.index("owl")
    for images, label, expected in (
        (splits.train, wren, drawn(0, 8)[:2]),  # class 0 of the ClassLabel
        (splits.test, owl, drawn(1, 4)[2:]),
    ):
        found = [images.original(int(index)) for index in np.flatnonzero(images.labels_I == label)]
        np.testing.assert_array_equal([np.asarray(image) for image in found], expected)


def test_a_saved_set_of_several_files_is_divided_into_halves() -> None:
    splits = load_hf_dataset(SAVED / "whole", OPTIONS)
    assert (splits.train.class_names, splits.test.class_names) == (("finch", "robin"), ("tit", "wren"))
    found = [np.asarray(splits.train.original(index)) for index in range(4)]
    np.testing.assert_array_equal(found, [drawn(3, 8)[index] for index in (4, 5, 2, 3)])
    assert detect_layout(SAVED / "whole") == detect_layout(SAVED / "splits") == "hf_dataset"


def test_a_state_that_leads_out_of_the_data_set_is_refused(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(SAVED / "whole", tmp_path / "whole"))
    (copy / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../secret.arrow"}]}))
    with pytest.raises(DataError, match="names the file '../../secret.arrow'"):
        load_hf_dataset(copy, OPTIONS)
