"""What every test shares: an offline, quiet environment, a tiny random checkpoint and one Ray cluster."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomli_w
from xdist.scheduler import LoadFileScheduling

# Set before torch, Ray or vLLM is imported; subprocesses and Ray workers inherit it.
os.environ.update(
    {
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "disabled",  # left open, the answer depends on a token file in the home folder
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
    }
)
os.environ.pop("RAY_ADDRESS", None)  # never join somebody's running cluster
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the package is compiled once, not by each process of each test
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are tiny, and sums keep their order
os.environ.setdefault("MPLBACKEND", "Agg")


LONGEST_FIRST = ("cluster", "vllm", "integration")
"""Markers of files that must not be the last ones to start: then all processes but one would wait for their end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first.

    Raises:
        pytest.UsageError: a test starts Ray and its marker does not say so.
    """
    ranks: dict[Path, int] = {}
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("cluster"):
            raise pytest.UsageError(f"{item.nodeid}: starts Ray; expected pytest.mark.cluster")
        ranks[item.path] = min(_rank(item), ranks.get(item.path, len(LONGEST_FIRST)))
    items.sort(key=lambda item: ranks[item.path])


def _rank(item: pytest.Item) -> int:
    found = (rank for rank, marker in enumerate(LONGEST_FIRST) if item.get_closest_marker(marker))
    return next(found, len(LONGEST_FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Distributes the tests over the processes of ``pytest -n N``."""
    config.option.loadscopereorder = False  # the order of collection
    return OneProcessForRay(config, log)


class OneProcessForRay(LoadFileScheduling):
    """Sends each file to one process, for its fixtures' sake, and all files that start Ray to the same process.

    Ray gives a node 30 s to start, and two that start at a time may take longer.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "ray" if _starts_ray(self.config.rootpath / file) else file


@cache
def _starts_ray(file: Path) -> bool:
    """True when the file has tests with the marker ``cluster``, by its text: the scheduler's process collects none."""
    return "pytest.mark.cluster" in file.read_text("utf-8")


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Lets a report with a lone surrogate, out of a test of hostile names, travel between test processes."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        case dict():
            return {key: _encodable(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(map(_encodable, value))
    return value


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Qwen3-VL in Hugging Face format with seeded random weights."""
    from saga_dist.standin.checkpoint import write_random_checkpoint

    folder = tmp_path_factory.mktemp("tiny_checkpoint")
    write_random_checkpoint(folder, seed=0)
    return folder


@pytest.fixture(scope="session", params=["qwen3_vl", "qwen2_5_vl", "internvl"])
def family_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random model of each supported family in turn; none of its weights is zero or one."""
    from saga_dist.standin.random_families import write_random_family

    return write_random_family(tmp_path_factory.mktemp(request.param), request.param, seed=3)


TINY_RUN: dict[str, dict[str, Any]] = {
    "run": {"steps": 2},
    "data": {
        "layout": "birds",
        "image_size": 80,
        "batch_size": 8,
        "images_per_class": 2,
        "birds": {
            "train_classes": 4,
            "train_images_per_class": 3,
            "val_images_per_class": 2,
            "test_images_per_class": 2,
            "probe_images": 0,
        },
    },
    "prompt": {"vocabulary": "standin_birds"},
    "model": {"dtype": "float32", "embedding_dim": 16},
    "objective": {"metric_loss": "proxy_anchor", "kl_layer": 1},
    "rollout": {
        "engine": "transformers",
        "pairs_per_batch": 4,
        "group_size": 2,
        "max_micro_batches": 1,
        "max_tokens": 8,
    },
    "runtime": {"kind": "serial"},
}


@pytest.fixture(scope="session")
def write_tiny_config() -> Callable[..., Path]:
    """Function ``(path, model, **sections)`` that writes a run small enough to train in a test, and returns ``path``.

    ``model`` is the checkpoint's folder; the settings in ``sections`` are added to ``TINY_RUN`` or replace its own.
    """

    def write(path: Path, model: Path, /, **sections: dict[str, Any]) -> Path:
        tree = {name: {**TINY_RUN.get(name, {}), **sections.get(name, {})} for name in {**TINY_RUN, **sections}}
        tree["model"]["path"] = str(model)
        path.write_text(tomli_w.dumps(tree))
        return path

    return write


@pytest.fixture(scope="session")
def layout_makers() -> dict[str, Callable[[Path], object]]:
    """By layout, what makes a small tree of it in a folder: they lie beside the tests of the layouts."""
    return {**_test_module("data/conftest.py").MAKERS, "cars": _test_module("data/layouts/test_cars.py").form_a}


def _test_module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"trees_of_{Path(path).stem}", Path(__file__).parent / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[dict[str, str]]:
    """A Ray cluster of our own with 4 CPUs: yields Ray's addresses, ends what it started and nothing else."""
    import ray

    # Sockets lie below it and their paths are limited to 107 characters, so pytest's own tmp_path is too long.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    try:
        yield _start_ray(folder)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start_ray(folder: Path, attempts: int = 2) -> dict[str, str]:
    """Starts a private Ray in ``folder``; on a busy machine its node may miss the 30 s that Ray gives it."""
    import ray

    try:
        context = ray.init(
            address="local",
            num_cpus=4,
            num_gpus=0,
            resources={"learner": 2, "rollout": 4, "replay": 4},  # what pods of a role offer, for runtime.pin_roles
            object_store_memory=200 * 1024**2,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=str(folder),
        )
    except Exception as error:
        ray.shutdown()
        if attempts == 1 or "timed out" not in str(error):
            raise
        return _start_ray(folder, attempts - 1)
    return dict(context.address_info)
