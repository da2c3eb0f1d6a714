"""saga_dist: train an image-retrieval encoder with a frozen multimodal LLM as its critic (SAGA, arXiv 2606.15134)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saga_dist.api import embed, evaluate, train
    from saga_dist.models.encoder import load

__version__ = "0.1.0"
__all__ = ["__version__", "embed", "evaluate", "load", "train"]

_HOMES = {
    "embed": "saga_dist.api",
    "evaluate": "saga_dist.api",
    "load": "saga_dist.models.encoder",
    "train": "saga_dist.api",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import saga_dist` (and the command line's --help) does not import torch.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'saga_dist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]  # for completion in a notebook
