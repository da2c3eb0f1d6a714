"""Checks of ``model.train`` that need neither torch nor a model."""

from __future__ import annotations

import importlib.util

from saga_dist.errors import ConfigError, ModelError

PEFT_FIX = "pip install 'saga-dist[lora]', or set model.train = \"last:4\""


def check_last_blocks(count: int, num_blocks: int, *, where: str) -> None:
    """Checks that a tower has as many blocks as ``model.train = "last:N"`` names.

    Args:
        count: N.
        num_blocks: number of blocks of the tower.
        where: folder or hub name of the checkpoint, or name of the family, for the error.

    Raises:
        ModelError: it has fewer.
    """
    if count > num_blocks:
        raise ModelError(
            f'model.train = "last:{count}"',
            where=where,
            expected=f"at most last:{num_blocks}, all blocks of the tower",
            fix=f'set model.train = "last:{max(1, num_blocks // 4)}", or "all"',
        )


def check_peft() -> None:
    """Checks that peft is installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("peft is not installed", where='model.train = "lora"', fix=PEFT_FIX)
