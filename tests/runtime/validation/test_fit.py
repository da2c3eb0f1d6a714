"""Settings that fit a small data set, over a grid of class counts; what they give passes the validation."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from saga_dist.config import RunConfig, load_config
from saga_dist.data.class_sizes import check_class_sizes, check_pair_counts
from saga_dist.data.layouts.division import halves, hold_out
from saga_dist.errors import DataError
from saga_dist.runtime.validation import validate_run
from saga_dist.runtime.validation.fit import ClassCounts, fit_to_data, fitting_overrides

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "configs" / "folder.toml"
CPU = ("runtime.kind=serial", "model.path=standin", "objective.kl_layer=1")


def counts_of(classes: int, images: int) -> ClassCounts:
    """Class counts of a folder of ``classes`` equal classes, half of them for the test."""
    train, test = halves([f"c{number:02d}" for number in range(classes)])
    return ClassCounts(training=dict.fromkeys(train, images), test=[images] * len(test))


def fitted(counts: ClassCounts, *overrides: str) -> RunConfig:
    config = load_config(FOLDER, overrides)
    return load_config(FOLDER, [*overrides, *fitting_overrides(config, counts)])


@pytest.mark.parametrize("images", range(2, 11))
def test_every_small_data_set_gets_settings_that_fit(images: int) -> None:
    for classes, judged in product(range(4, 21), (0, 1000)):
        counts = counts_of(classes, images)
        config = fitted(counts, f"evaluation.verdict_pairs={judged}")  # parsing holds the checks between the keys
        names = list(counts.training)
        if config.data.val_fraction:
            held_out = hold_out(names, config.data.val_fraction, config.run.seed, where="")
            names = [name for name in names if name not in held_out]
        sizes = {name: counts.training[name] for name in names}
        check_class_sizes(sizes, config.data.batch_size, config.data.images_per_class)
        # Pairs of a micro-batch, of the training classes and of the test classes.
        batch_classes = config.data.batch_size // config.data.images_per_class
        check_pair_counts([config.data.images_per_class] * batch_classes, config.rollout.pairs_per_batch)
        for side in (list(sizes.values()), counts.test):
            check_pair_counts(side, config.evaluation.verdict_pairs)
        assert bool(judged) == bool(config.evaluation.verdict_pairs)


def test_settings_that_fit_already_stay() -> None:
    assert fitting_overrides(load_config(FOLDER), counts_of(100, 10)) == []


def test_nothing_is_lowered_more_than_the_data_asks_for() -> None:
    """12 training classes of 3 images: two or three are validation classes, the batch takes all that are left."""
    config = load_config(FOLDER)
    assert fitting_overrides(config, counts_of(24, 3)) == [
        "data.batch_size=30",
        "data.images_per_class=3",
    ]
    assert fitting_overrides(config, counts_of(4, 4)) == [
        "data.val_fraction=0",
        "data.batch_size=8",
        "rollout.pairs_per_batch=8",
    ]
    odd = fitting_overrides(config, counts_of(6, 3))
    assert odd == ["data.val_fraction=0", "data.batch_size=9", "data.images_per_class=3", "rollout.pairs_per_batch=8"]


def test_the_smallest_class_decides_and_validation_classes_do_not() -> None:
    counts = ClassCounts({"a": 9, "b": 3, "c": 9, "d": 9}, [9, 9])
    assert "data.images_per_class=3" in fitting_overrides(load_config(FOLDER, ["data.val_fraction=0"]), counts)
    held_out = set(hold_out(list("abcd"), 0.2, 0, where=""))
    per_class = fitted(counts).data.images_per_class
    assert per_class == (4 if "b" in held_out else 3)


@pytest.mark.parametrize(
    ("counts", "overrides", "said"),
    [
        (ClassCounts({"a": 9}, [9]), [], "1 training classes.*at least 2 classes with 2 images"),
        (ClassCounts({"a": 9, "b": 1}, [9]), [], "smallest with 1 images"),
        (
            ClassCounts({"a": 2, "b": 2}, [9]),
            ["runtime.learner_processes=8", "replay.workers=1", "runtime.learner_num_gpus=1"],
            "at most 4 images for 8 learner processes",
        ),
    ],
)
def test_where_nothing_fits_the_error_says_what_is_needed(counts: ClassCounts, overrides: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        fitting_overrides(load_config(FOLDER, overrides), counts)


def write_folder(root: Path, classes: int, images: int) -> Path:
    for number in range(classes * images):
        path = root / f"c{number // images:02d}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number % 256).save(path)
    return root


@pytest.mark.parametrize(("classes", "images"), [(4, 2), (4, 4), (6, 3), (7, 5), (9, 2), (20, 2)])
def test_a_folder_on_disk_passes_the_validation_with_them(tmp_path: Path, classes: int, images: int) -> None:
    data = write_folder(tmp_path / "data", classes, images)
    overrides = [f"data.root={data}", *CPU, "evaluation.verdict_pairs=50"]
    config = load_config(FOLDER, overrides)
    with pytest.raises(DataError) as caught:
        validate_run(config, tmp_path / "run")
    fitting = fit_to_data(config)
    assert str(caught.value).endswith(f"--fit-to-data sets what fits this data set: {' '.join(fitting)}")
    assert validate_run(load_config(FOLDER, [*overrides, *fitting]), tmp_path / "run") == []
