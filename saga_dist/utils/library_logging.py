"""Log levels of third-party libraries while a command runs."""

from __future__ import annotations

import logging
import os


def quiet_libraries(*, verbose: bool = False) -> None:
    """Sets the log level of vLLM and transformers to errors only; variables set in the environment are kept.

    Call it before any heavy import: the libraries read these environment variables when they are imported.

    Args:
        verbose: True for INFO messages of vLLM and warnings of transformers.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if verbose else "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "warning" if verbose else "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The library has a handler of its own and passes its records on to the root's too, which would print them twice.
    logging.getLogger("huggingface_hub").propagate = False
    if not verbose:
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # warns on every machine without a GPU
