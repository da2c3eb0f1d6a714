"""The configurations ("worlds") of an oracle screen: run configurations of the built-in birds, and their variations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saga_dist.config import RunConfig, load_config
from saga_dist.config.find import find_config, shipped_names
from saga_dist.errors import ConfigError

WORLDS_FOLDER = "evidence"
"""Folder of the shipped worlds, below ``configs``."""

Pooling = Literal["mean", "linear", "mlp"]
POOLINGS: tuple[Pooling, ...] = ("mean", "linear", "mlp")
"""Poolings that the metric loss is tuned over."""
RATE_FACTORS = (0.3, 1.0, 3.0)
"""Factors of the learning rate that the metric loss is tuned over."""


@dataclass(frozen=True, slots=True)
class ScreenSetting:
    """Settings that the metric loss is tuned over."""

    pooling: Pooling
    """Mean pooling, or attention pooling with a linear or a two-layer key."""
    rate_factor: float
    """Factor of the world's learning rate of the encoder, above 0."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """Configuration overrides of the pooling, as ``section.key=value``."""
        if self.pooling == "mean":
            return ("model.pooler=mean",)
        return ("model.pooler=attention", f"model.pooler_key={self.pooling}")

    def __str__(self) -> str:
        return f"{self.pooling} x{self.rate_factor:g}"


@dataclass(frozen=True, slots=True)
class World:
    """One configuration of a screen: its file, the overrides, and the resulting run configuration."""

    path: Path
    """TOML file of the configuration."""
    overrides: tuple[str, ...]
    """Overrides ``section.key=value`` that every run of the screen gets."""
    config: RunConfig
    """Configuration from file and overrides."""

    @property
    def name(self) -> str:
        """File name without its extension."""
        return self.path.stem

    @property
    def setting(self) -> ScreenSetting:
        """Pooling of the configuration, with its own learning rate."""
        pooling: Pooling = self.config.model.pooler_key if self.config.model.pooler == "attention" else "mean"
        return ScreenSetting(pooling, 1.0)

    def varied(self, setting: ScreenSetting, *, lambda_lm: float, lambda_kl: float, seed: int) -> RunConfig:
        """Returns the world's configuration with another setting, loss weights and seed.

        Args:
            setting: pooling and learning rate factor.
            lambda_lm: weight of the policy-gradient loss, here the loss of the oracle's text.
            lambda_kl: weight of the attention alignment.
            seed: seed of the run.
        """
        rate = self.config.optimizer.lr_encoder * setting.rate_factor
        return load_config(
            self.path,
            [
                *self.overrides,
                *setting.overrides,
                f"objective.lambda_lm={lambda_lm}",
                f"objective.lambda_kl={lambda_kl}",
                f"optimizer.lr_encoder={rate}",
                f"run.seed={seed}",
            ],
        )


def load_worlds(paths: Sequence[Path], overrides: Sequence[str] = ()) -> list[World]:
    """Returns the worlds in the files, or those shipped in ``configs/evidence`` when no file is given.

    Args:
        paths: TOML files, or names of shipped ones; may be empty.
        overrides: ``section.key=value`` for every world.

    Raises:
        ConfigError: there is no world, two have one name, or one does not use the built-in birds and their prompt.
    """
    files = [find_config(path) for path in paths or shipped_names((WORLDS_FOLDER,))]
    worlds = [World(file, tuple(overrides), load_config(file, overrides)) for file in files]
    for world in worlds:
        if world.config.data.layout != "birds" or world.config.prompt.vocabulary != "standin_birds":
            raise ConfigError(
                f"data.layout = {world.config.data.layout}, prompt.vocabulary = {world.config.prompt.vocabulary}",
                where=str(world.path),
                expected="the built-in birds and their words: other data has no known true answers",
                fix='set data.layout = "birds" and prompt.vocabulary = "standin_birds"',
            )
    names = [world.name for world in worlds]
    if len(set(names)) != len(names):
        raise ConfigError(f"worlds are named {', '.join(names)}", where="command line", expected="each name once")
    return worlds
