"""Restores process-wide state that the start of a library changes as a side effect."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Restores process-wide state at the end of the context, in which vLLM's engine is started.

    The engine may share its process with the learner. On CPU, vLLM replaces ``torch.set_num_threads`` by a function
    without effect, and sets ``LD_PRELOAD`` for all later child processes; on every device it seeds the global random
    generators. Within the context, FutureWarnings are suppressed, because torch warns about vLLM's code.
    """
    set_num_threads, preload = torch.set_num_threads, os.environ.get("LD_PRELOAD")
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        torch.set_num_threads = set_num_threads
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload
