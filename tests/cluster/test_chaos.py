"""A few of the drills that ``make chaos`` runs by the hundred."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

HERE = Path(__file__).parent


def drill(script: str, *options: str, timeout_s: float) -> str:
    done = subprocess.run(
        [sys.executable, str(HERE / script), *options],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return done.stdout


def test_a_disturbed_run_accounts_for_every_pair_and_ends_with_the_weights_of_a_quiet_one() -> None:
    # Seed 435 belongs to the stream with replay workers and lost calls, and its plan (`chaos_stream.plan`) has every
    # role: two replay workers and the learner are killed, a rollout worker answers too little.
    said = drill("chaos.py", "--seed", "435", "--runs", "1", "--stream", "3", timeout_s=900)
    assert "1 runs, 0 hangs" in said and "0 lost, 0 told twice" in said, said
    assert "weights equal to the quiet run in 1 of 1 runs" in said, said


@pytest.mark.slow
def test_a_kill_a_minute_costs_little() -> None:
    said = drill("soak.py", "--minutes", "2", timeout_s=900)
    assert "2 kills" in said and "0 lost, 0 told twice" in said, said
