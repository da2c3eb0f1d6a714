"""Shifts the wall clock of every Python process that has this folder on its path by ``HOST_CLOCK_SHIFT_S`` seconds.

Ray's own processes keep theirs: locks of C++ wait for times of the system's clock.
"""

from __future__ import annotations

import os
import time

_shift_s = int(os.environ.get("HOST_CLOCK_SHIFT_S", "0"))
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + _shift_s
time.time_ns = lambda: _time_ns() + _shift_s * 1_000_000_000
