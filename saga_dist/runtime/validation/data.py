"""Checks of the data: classes and images for the micro-batches, pairs for the evaluation, recordings to train on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from saga_dist.config import RunConfig, load_run_config
from saga_dist.data.check import class_sizes
from saga_dist.data.class_sizes import check_class_sizes, check_pair_counts
from saga_dist.data.image_sets import Splits
from saga_dist.errors import DataError
from saga_dist.runtime.build import build_splits
from saga_dist.runtime.validation.facts import RunFacts
from saga_dist.runtime.validation.fit import fitting_overrides, read_class_counts
from saga_dist.training.recording_folder import not_recorded, recorded_files


def check_data(run: RunFacts) -> str:
    """Checks that micro-batches and evaluation pairs can be drawn from the classes of the data set.

    Raises:
        DataError: they cannot; the error names the overrides that fit the data set, where some do.
    """
    config = run.config
    if config.data.layout == "birds":
        _check_birds(config)
    elif run.is_elsewhere(config.data.root):
        return f"data.root = {config.data.root} is not on this machine; the nodes of the cluster need it"
    else:
        try:
            check_classes(config, build_splits(config.data, seed=config.run.seed))
        except DataError as error:
            raise with_fitting_overrides(config, error) from error
    return ""


def check_recording(run: RunFacts) -> str:
    """Checks that the recording that the run trains on has all of its steps, in files that can be read.

    Raises:
        UserError: it is no run directory, has too few steps, or a file is damaged or of another version.
    """
    config = run.config
    recording = Path(config.rollout.recording)
    if not config.rollout.recording or not config.objective.needs_rollouts or run.is_elsewhere(str(recording)):
        return ""
    load_run_config(recording)
    files = recorded_files(recording)
    if missing := set(range(1, config.run.steps + 1)) - set(files):
        raise not_recorded(recording, min(missing))
    from saga_dist.wire import check_recording as check_file  # imports torch

    for step in range(1, config.run.steps + 1):
        check_file(files[step])
    return ""


def _check_birds(config: RunConfig) -> None:
    from saga_dist.standin.world import check_species, species

    birds = config.data.birds
    check_species(birds)
    train = {f"built-in species {number}": birds.train_images_per_class for number in range(birds.train_classes)}
    check_class_sizes(train, config.data.batch_size, config.data.images_per_class)
    for counts in (list(train.values()), [birds.test_images_per_class] * len(species()["test"])):
        check_pair_counts(counts, config.evaluation.verdict_pairs)


def check_classes(config: RunConfig, splits: Splits) -> None:
    """Checks that micro-batches and evaluation pairs can be drawn from a data set on disk.

    Args:
        config: configuration of the run.
        splits: the data set that it names, listed.

    Raises:
        DataError: they cannot.
    """
    train = _quoted(dict(class_sizes(splits.train)))
    check_class_sizes(train, config.data.batch_size, config.data.images_per_class)
    for images in (splits.train, splits.test):
        check_pair_counts([size for _, size in class_sizes(images)], config.evaluation.verdict_pairs)


def _quoted(sizes: Mapping[str, int]) -> dict[str, int]:
    return {repr(name): size for name, size in sizes.items()}


def with_fitting_overrides(config: RunConfig, error: DataError) -> DataError:
    """Returns the error with the overrides that fit the data set; the error alone where other settings do not help.

    Raises:
        DataError: the data set is too small for any settings.
    """
    if config.data.split_hash:
        return error  # another division would have another hash
    overrides = fitting_overrides(config, read_class_counts(config))
    if not overrides:
        return error
    return DataError(f"{error}; --fit-to-data sets what fits this data set: {' '.join(overrides)}")
