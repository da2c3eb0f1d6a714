"""Sizes of the check: released models for GPUs, and a tiny one for CPUs and tests; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from saga_dist.errors import ConfigError
from saga_dist.runtime.validation.gpus import visible_gpus

GIB = 1 << 30
AUTO = "auto"
"""Name of the largest size for this machine's GPU."""


@dataclass(frozen=True, slots=True)
class CheckSize:
    """A model and the amount of work of each section; the defaults are the work of the paper's runs."""

    name: str
    """Name of the size, as in ``--size``."""
    release: str
    """Hub name of the released model whose sizes are used; empty for the tiny model."""
    least_memory: int
    """Smallest memory of a GPU, in bytes, on which the size is the default."""
    image_size: int = 224
    """Side of the square images, in pixels."""
    batch_size: int = 64
    """Images of a micro-batch."""
    images_per_class: int = 4
    """Images of each class in a micro-batch."""
    embedding_dim: int = 4096
    """E, width of an embedding."""
    pairs: int = 16
    """Pairs of a micro-batch, which the engine generates together."""
    prompt_tokens: int = 710
    """Tokens of the prompt, both images included."""
    lengths: tuple[int, ...] = (667, 400, 935, 578, 1024, 489, 846, 757)
    """[G] tokens of the completions of a replayed group."""
    ragged_groups: int = 10
    """Groups of random lengths after which memory is looked at."""
    precision_layers: int = 4
    """Decoder layers of the model on which two programs are compared."""

    @property
    def longest(self) -> int:
        """Most tokens of a completion."""
        return max(self.lengths)


_RELEASED = CheckSize("8b", "Qwen3-VL-8B-Instruct", 70 * GIB)
SIZES = {
    "tiny": CheckSize(
        "tiny",
        "",
        0,
        image_size=80,
        batch_size=8,
        images_per_class=2,
        embedding_dim=16,
        pairs=4,
        prompt_tokens=72,
        lengths=(6, 16, 9),
        ragged_groups=3,
        precision_layers=2,
    ),
    "2b": replace(_RELEASED, name="2b", release="Qwen3-VL-2B-Instruct", least_memory=20 * GIB),
    "4b": replace(_RELEASED, name="4b", release="Qwen3-VL-4B-Instruct", least_memory=40 * GIB),
    "8b": _RELEASED,
}
"""All sizes by name, from small to large."""


def size_for(memory: int) -> str:
    """Returns the name of the largest size for a GPU of ``memory`` bytes; 0 bytes for no GPU."""
    return [name for name, size in SIZES.items() if size.least_memory <= memory][-1]


def check_size(name: str) -> None:
    """Checks that a name is ``AUTO`` or a size that this machine may run.

    Raises:
        ConfigError: the size is unknown, or it is a released one and there is no GPU.
    """
    if name == AUTO:
        return
    if name not in SIZES:
        raise ConfigError(f"no size {name!r}", where="--size", expected=f"{AUTO}, {', '.join(SIZES)}")
    if SIZES[name].release and visible_gpus() == 0:
        raise ConfigError(
            f"{name}, the sizes of {SIZES[name].release}, without a GPU in this process",
            where="--size",
            expected="a machine with a GPU that is not hidden",
            fix="leave --size out for the tiny model",
        )
