"""The file of a table: a base configuration, variants with their overrides and published figures, and seeds."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from saga_dist.config import Section
from saga_dist.errors import ConfigError


class PublishedFigures(Section):
    """What the paper printed for a row."""

    recall_at_1: float = Field(ge=0, le=100, description="percent")
    recall_sd: float | None = Field(None, ge=0, description="over the paper's seeds, points")
    nmi: float | None = Field(None, ge=0, le=1)


class Variant(Section):
    """One row of the table."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9_-]*$", description="folder of its runs")
    label: str = Field(min_length=1, description="what the table calls it")
    set: tuple[str, ...] = Field((), description="section.key=value over the base configuration")
    pretrained: bool = Field(False, description="evaluate the tower as it came, mean-pooled; train nothing")
    against: str | tuple[str, ...] = Field("", description='variants of its paired tests; "": the table\'s baseline')
    paper: PublishedFigures | None = Field(None, description="the published figures of this row")

    @property
    def overrides(self) -> tuple[str, ...]:
        """``set``, and without training also without the MLLM."""
        return (*self.set, "objective.lambda_lm=0", "objective.lambda_kl=0") if self.pretrained else self.set


class Table(Section):
    """A table as its file says it."""

    title: str = Field(min_length=1)
    config: str = Field(description="base configuration, relative to this file")
    set: tuple[str, ...] = Field((), description="section.key=value for every variant")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    seed_set: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="section.key=value for a seed's cells: weights of another pre-training, say"
    )
    baseline: str = Field(description="variant that the others are tested against")
    variant: tuple[Variant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_fit(self) -> Table:
        names = [variant.name for variant in self.variant]
        if len(set(names)) != len(names):
            raise ValueError(f"variants are named {', '.join(names)}; expected each name once")
        if min(self.seeds) < 0 or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)}; expected each seed once, none negative")
        if strangers := self.seed_set.keys() - set(map(str, self.seeds)):
            raise ValueError(f"seed_set.{min(strangers)}: expected one of the seeds {list(self.seeds)}")
        for key, name in (
            ("baseline", self.baseline),
            *((v.name + ".against", name) for v in self.variant for name in self.opponents(v)),
        ):
            if name not in names:
                raise ValueError(f"{key} = {name!r}; expected one of {', '.join(names)}")
        return self

    def overrides_of(self, seed: int) -> tuple[str, ...]:
        """Returns what every cell of a seed has over the base configuration."""
        return (*self.set, *self.seed_set.get(str(seed), ()))

    def opponents(self, variant: Variant) -> tuple[str, ...]:
        """Returns the names of the variants that a variant is tested against; none for the baseline."""
        named = (variant.against,) if isinstance(variant.against, str) else variant.against
        return tuple(name or self.baseline for name in named if (name or self.baseline) != variant.name)


def load_table(path: Path) -> Table:
    """Returns the table in a TOML file.

    Raises:
        ConfigError: the file cannot be read, or a key, type or value is wrong.
    """
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
        # By way of JSON, where a strict tuple may be written as an array.
        return Table.model_validate_json(json.dumps(tree))
    except OSError as error:
        raise ConfigError(f"cannot read the file ({error.strerror})", where=str(path), fix="check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError("the file is not UTF-8 text", where=str(path), expected="TOML") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "table"
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{key}: {message}", where=str(path), expected="a table of variants") from error
    except (ValueError, TypeError) as error:  # no TOML; or a date, which JSON does not have
        raise ConfigError(f"not valid TOML ({error})", where=str(path)) from error
