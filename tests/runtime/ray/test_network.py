"""Hosts that are really apart: a run survives cut and slow links, notices and a clock that is a minute ahead."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime.ray.net_hosts import HEAD, Hosts, why_not
from runtime.ray.network_run import NOTICE_S, PAIRS, SHIFT_S, start_node

pytestmark = pytest.mark.netns

log = logging.getLogger(__name__)

TESTS = Path(__file__).parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, since sockets lie below it and their paths are limited to 107 characters."""
    made = Path(tempfile.mkdtemp(prefix="net-", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_a_run_over_three_hosts_loses_no_pair_and_has_the_weights_of_a_quiet_one(folder: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    prefix = f"saga{os.getpid()}"
    with Hosts(prefix) as hosts:
        hosts.start_ray(HEAD, folder, {})
        start_node(hosts, "a", folder, learner=1, rollout=2, replay=1)
        start_node(hosts, "b", folder, rollout=2)
        done = subprocess.run(
            hosts.command(HEAD, sys.executable, "-m", "runtime.ray.network_run", prefix, str(folder)),
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            capture_output=True,
            text=True,
            timeout=550,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-5000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    log.info("%s", outcome)
    assert outcome["fates"] == {
        "trained": outcome["steps"] * PAIRS,
        "surplus": 0,
        "zero_variance": 0,
        "quarantined": 0,
        "cancelled": 0,
    }
    assert outcome["weights_equal"]
    assert outcome["checkpoint_after_s"] <= NOTICE_S
    assert outcome["clock_ahead_s"] == pytest.approx(SHIFT_S, abs=5)
    assert "is about to be taken away" in done.stderr
