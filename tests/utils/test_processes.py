"""Identities of processes: a living one, an ended one, its children, and another machine's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from saga_dist.utils.processes import descendants, end, identify, is_alive, is_of_earlier_boot, this_machine

pytestmark = pytest.mark.skipif(not this_machine().namespace, reason="needs /proc")


def test_an_ended_process_is_dead_and_another_with_its_number_is_not_taken_for_it() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    process = identify(sleeper.pid)
    assert process is not None and is_alive(process) is True
    assert is_alive(replace(process, started=process.started - 1)) is False, "another process had this number before"
    end(replace(process, started=process.started - 1), signal.SIGKILL)
    assert sleeper.poll() is None
    end(process, signal.SIGKILL)
    assert sleeper.wait(timeout=10) == -signal.SIGKILL
    assert is_alive(process) is False


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    process = identify(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked for its exit code
    assert process is None or is_alive(process) is False
    child.wait()


def test_grandchildren_are_descendants() -> None:
    code = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdin is not None
    grandchild = identify(int(child.stdout.readline()))
    assert grandchild is not None
    assert grandchild in descendants(os.getpid())
    assert descendants(child.pid) == [grandchild]
    end(grandchild, signal.SIGKILL)
    child.stdin.close()
    child.wait(timeout=10)
    child.stdout.close()


def test_nothing_is_claimed_about_other_machines() -> None:
    mine = identify(os.getpid())
    assert mine is not None
    elsewhere = replace(mine, machine=replace(mine.machine, namespace="pid:[1]"))
    rebooted = replace(mine, machine=replace(mine.machine, boot="another"))
    assert [is_alive(elsewhere), is_alive(rebooted)] == [None, None]
    assert [is_of_earlier_boot(one) for one in (mine, elsewhere, rebooted)] == [False, False, True]
