"""saga_dist: train an image-retrieval encoder with a frozen multimodal LLM as its critic (SAGA, arXiv 2606.15134)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saga_dist.models.encoder import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import saga_dist` (and the command line's --help) does not import torch.
    if name == "load":
        from saga_dist.models.encoder import load

        return load
    raise AttributeError(f"module 'saga_dist' has no attribute {name!r}")
