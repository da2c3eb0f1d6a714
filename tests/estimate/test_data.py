"""How many classes a benchmark trains on where its images are not here."""

from __future__ import annotations

from saga_dist.config.registries import LAYOUTS
from saga_dist.estimate.data import PUBLISHED


def test_every_benchmark_has_its_published_split() -> None:
    of_ones_own = {"birds", "folder", "manifest", "webdataset", "hf_dataset"}
    assert PUBLISHED.keys() == LAYOUTS.builtin.keys() - of_ones_own
