"""Other libraries keep quiet while a command runs."""

from __future__ import annotations

import logging
import os


def quiet_libraries(*, verbose: bool = False) -> None:
    """Lets vLLM and transformers tell errors only; what the environment says already stays.

    Call it before any heavy import: libraries read these once.

    Args:
        verbose: let them tell what they do.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if verbose else "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "warning" if verbose else "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not verbose:
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # warns on every machine without a GPU
