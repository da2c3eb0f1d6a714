"""The pair ledger accounts for every pair, and its audit finds what is lost, doubled or cancelled by mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from saga_dist.data.sampling import ClassBalancedSampler
from saga_dist.errors import CheckpointError
from saga_dist.training.pair_ledger import PairLedger
from saga_dist.types import Quarantined

PAIRS = 4


@pytest.fixture
def sampler() -> ClassBalancedSampler:
    return ClassBalancedSampler([0, 0, 1, 1, 2, 2, 3, 3], 8, 2, seed=1)


@pytest.fixture
def written(sampler: ClassBalancedSampler, tmp_path: Path) -> Path:
    """Returns a ledger of two steps of two and one micro-batches; two and one further ones were cancelled."""
    ledger = PairLedger(tmp_path / "ledger.jsonl")
    for step, num_batches, num_cancelled in ((0, 2, 2), (1, 1, 1)):
        ids = [
            pair.pair_id
            for index in range(num_batches + num_cancelled)
            for pair in sampler.micro_batch(step, index, PAIRS).pairs
        ]
        used, cancelled = ids[: PAIRS * num_batches], ids[PAIRS * num_batches :]
        ledger.append(
            step + 1,
            num_batches,
            {"trained": used[:2], "zero_variance": used[3:]},
            [Quarantined(used[2], "engine died", 3)],
            cancelled,
        )
    return tmp_path / "ledger.jsonl"


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> PairLedger:
    """Returns the ledger after a change of the row of its first step."""
    first, second = map(json.loads, path.read_text().splitlines())
    change(first)
    path.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    return PairLedger(path)


def test_every_pair_is_counted(written: Path, sampler: ClassBalancedSampler) -> None:
    counts = PairLedger(written).audit(sampler, 2, PAIRS)
    assert counts == {"trained": 4, "surplus": 0, "zero_variance": 6, "quarantined": 2, "cancelled": 12}


def test_rows_of_earlier_versions_have_no_cancelled_pairs(written: Path, sampler: ClassBalancedSampler) -> None:
    ledger = changed(written, lambda row: row.pop("cancelled"))
    assert ledger.audit(sampler, 2, PAIRS)["cancelled"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["trained"].pop(), "7 pairs, the first that differs: s000001.m0.p01"),
        (lambda row: row["surplus"].append(row["trained"][0]), "9 pairs, the first that differs: s000001.m0.p00"),
        (lambda row: row["trained"].append(row["cancelled"].pop(0)), "the 8 pairs of its micro-batches, each once"),
        (lambda row: row["cancelled"].append(row["trained"].pop(0)), "the 8 pairs of its micro-batches, each once"),
        (lambda row: row["cancelled"].pop(), "7 pairs, the first that differs: s000001.m3.p03"),
        (lambda row: row["cancelled"].append(row["cancelled"][0]), "the 12 pairs of its cancelled micro-batches"),
        (lambda row: row["cancelled"].__setitem__(0, row["trained"][0]), "first that differs: s000001.m0.p00"),
    ],
    ids=["lost", "twice", "trained though cancelled", "cancelled though used", "forgotten", "cancelled twice", "both"],
)
def test_a_wrong_row_is_found(
    change: Callable[[dict[str, Any]], object], message: str, written: Path, sampler: ClassBalancedSampler
) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)):
        changed(written, change).audit(sampler, 2, PAIRS)
