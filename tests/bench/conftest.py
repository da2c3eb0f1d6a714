"""What every bench's report must be."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import pytest
from rich.console import Console

from saga_dist.bench.common import Report, Size
from saga_dist.bench.records import BenchRecord, markdown
from saga_dist.cli.bench import print_report


def check_report(report: Report) -> None:
    """Figures survive JSON, are finite and positive, and the table keeps to 80 columns."""
    for row in report.rows:
        assert row.equal is True, row
        assert row.ours >= 0 and math.isfinite(row.ours)
        assert (row.ratio is None) == (row.other is None)
        assert row.ratio is None or row.ratio > 0
    measured = BenchRecord(size=Size.TINY, load=0.5, report=report)
    assert BenchRecord.model_validate_json(measured.model_dump_json()) == measured
    assert markdown(measured).count("\n| ") == len(report.rows) + 1
    shown = io.StringIO()
    print_report(Console(file=shown, width=80), report)
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(row.case.split(",")[0][:12] in line for line in lines) for row in report.rows)


@pytest.fixture
def assert_readable() -> Callable[[Report], None]:
    """Returns the check of a report of the smallest size."""
    return check_report
