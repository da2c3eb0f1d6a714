"""The worlds of a screen: run configurations of the built-in birds, and one screen's settings of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from saga_dist.config import RunConfig, load_config
from saga_dist.errors import ConfigError

WORLDS_FOLDER = Path("configs/evidence")
TABLE_PREFIX = "table_"

Pooling = Literal["mean", "linear", "mlp"]
POOLINGS: tuple[Pooling, ...] = ("mean", "linear", "mlp")
RATE_FACTORS = (0.3, 1.0, 3.0)


@dataclass(frozen=True, slots=True)
class ScreenSetting:
    """What the metric loss is tuned over."""

    pooling: Pooling
    """Mean pooling, or attention pooling with a linear or a two-layer key."""
    rate_factor: float
    """On the world's learning rate of the encoder."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """The pooling as ``section.key=value``."""
        if self.pooling == "mean":
            return ("model.pooler=mean",)
        return ("model.pooler=attention", f"model.pooler_key={self.pooling}")

    def __str__(self) -> str:
        return f"{self.pooling} x{self.rate_factor:g}"


@dataclass(frozen=True, slots=True)
class World:
    """One world: its file and what it says."""

    path: Path
    overrides: tuple[str, ...]
    """``section.key=value`` for everything that is done in it."""
    config: RunConfig

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.stem

    @property
    def setting(self) -> ScreenSetting:
        """The setting that the file itself has."""
        pooling: Pooling = self.config.model.pooler_key if self.config.model.pooler == "attention" else "mean"
        return ScreenSetting(pooling, 1.0)

    def varied(self, setting: ScreenSetting, *, lambda_lm: float, lambda_kl: float, seed: int) -> RunConfig:
        """Returns the world's configuration with a setting, weights of the two further losses, and a seed."""
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
    """Returns the worlds in these files; without any, those in ``configs/evidence`` that are not tables.

    Raises:
        ConfigError: there is none, or one is not a world of the built-in birds with validation classes.
    """
    if not paths:
        paths = sorted(path for path in WORLDS_FOLDER.glob("*.toml") if not path.name.startswith(TABLE_PREFIX))
        if not paths:
            raise ConfigError(
                "no world", where=str(WORLDS_FOLDER), fix="name files, or run the command where the repository lies"
            )
    worlds = [World(path, tuple(overrides), load_config(path, overrides)) for path in paths]
    for world in worlds:
        if world.config.data.layout != "birds" or world.config.prompt.vocabulary != "standin_birds":
            raise ConfigError(
                f"data.layout = {world.config.data.layout}, prompt.vocabulary = {world.config.prompt.vocabulary}",
                where=str(world.path),
                expected="the built-in birds and their words: elsewhere nobody knows the true answer",
                fix='set data.layout = "birds" and prompt.vocabulary = "standin_birds"',
            )
    names = [world.name for world in worlds]
    if len(set(names)) != len(names):
        raise ConfigError(f"worlds are named {', '.join(names)}", where="command line", expected="each name once")
    return worlds
