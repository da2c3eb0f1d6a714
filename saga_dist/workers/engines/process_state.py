"""Keeps what a library's start-up changes in this process beyond its own affairs."""

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
    """Returns to the former state afterwards; for the start of vLLM's engine in the process of the learner.

    On CPU it replaces ``torch.set_num_threads`` by a function that does nothing and sets ``LD_PRELOAD`` for all later
    child processes; everywhere it seeds the global random generators. Warnings of torch about vLLM's code are dropped.
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
