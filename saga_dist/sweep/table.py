"""The file of a table: a base configuration, variants with their overrides and published figures, and seeds."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from saga_dist.config import Section
from saga_dist.errors import ConfigError


class PublishedSetting(Section):
    """Setting of published figures: where they were printed, and what else decides them."""

    source: str | None = Field(None, min_length=1, description="publication of the figures")
    image_size: int | None = Field(
        None, ge=1, description="side of the encoder's square input in pixels; left out: not stated by the source"
    )
    pretraining: str | None = Field(
        None, min_length=1, description="pre-training of the encoder; left out: not stated by the source"
    )


class PublishedFigures(PublishedSetting):
    """Figures that were published for a row; a setting that is left out is that of the table."""

    recall_at_1: float = Field(ge=0, le=100, description="Recall@1 in percent")
    recall_sd: float | None = Field(
        None, ge=0, description="standard deviation of Recall@1 over the paper's seeds, in percentage points"
    )
    nmi: float | None = Field(None, ge=0, le=1, description="normalised mutual information, 0 to 1")


class Variant(Section):
    """One row of the table."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9_-]*$", description="name of the variant and of the folder of its runs")
    label: str = Field(min_length=1, description="text of the row in the table")
    set: tuple[str, ...] = Field((), description="section.key=value texts that override the base configuration")
    options: tuple[tuple[str, ...], ...] = Field(
        (),
        description="lists of further section.key=value texts; for each seed the one with the best Recall@1 on "
        "validation classes stands in the table",
    )
    pretrained: bool = Field(
        False, description="evaluate the pre-trained tower with mean-pooled tokens, without training"
    )
    against: str | tuple[str, ...] = Field(
        "", description='variants to compare with in paired tests; "": the table\'s baseline'
    )
    paper: PublishedFigures | None = Field(None, description="published figures of this row")
    published: bool = Field(
        False, description="the row has published figures of another work only, with their source, and no runs"
    )

    @model_validator(mode="after")
    def _published_row_has_a_source(self) -> Variant:
        if self.published and (self.paper is None or self.paper.source is None):
            raise ValueError("published = true without a source; expected paper = { recall_at_1 = …, source = … }")
        if self.published and (self.set or self.options or self.pretrained or self.against):
            raise ValueError(
                "published = true with set, options, pretrained or against; expected none of them: it has no runs"
            )
        return self

    @model_validator(mode="after")
    def _options_are_a_choice(self) -> Variant:
        if self.options and (self.pretrained or len(set(self.options)) < max(2, len(self.options))):
            raise ValueError("options: expected two or more different lists, for a variant that trains")
        return self

    @property
    def overrides(self) -> tuple[str, ...]:
        """The overrides of ``set``; a pre-trained variant also switches off the losses that need the MLLM."""
        return (*self.set, "objective.lambda_lm=0", "objective.lambda_kl=0") if self.pretrained else self.set


class Table(Section):
    """Content of a table's file."""

    title: str = Field(min_length=1, description="title of the table")
    config: str = Field(description="path of the base configuration, relative to this file")
    set: tuple[str, ...] = Field((), description="section.key=value texts for every variant")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="run.seed of the runs of every variant")
    seed_set: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="section.key=value texts for the cells of one seed, by seed, e.g. weights of another pre-training",
    )
    baseline: str = Field(description="variant that the others are compared with by default")
    published_setting: PublishedSetting = Field(
        PublishedSetting(), description="setting of the published figures of the table's own rows"
    )
    variant: tuple[Variant, ...] = Field(min_length=1, description="rows of the table")

    @model_validator(mode="after")
    def _names_fit(self) -> Table:
        names = [variant.name for variant in self.variant]
        trained = [variant.name for variant in self.trained]
        if len(set(names)) != len(names):
            raise ValueError(f"variants are named {', '.join(names)}; expected each name once")
        if min(self.seeds) < 0 or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)}; expected each seed once, none negative")
        if unknown := self.seed_set.keys() - set(map(str, self.seeds)):
            raise ValueError(f"seed_set.{min(unknown)}: expected one of the seeds {list(self.seeds)}")
        for key, name in (
            ("baseline", self.baseline),
            *((v.name + ".against", name) for v in self.trained for name in self.opponents(v)),
        ):
            if name not in trained:
                raise ValueError(f"{key} = {name!r}; expected one of {', '.join(trained)}")
        return self

    @property
    def trained(self) -> tuple[Variant, ...]:
        """The variants that have runs: all but those with published figures only."""
        return tuple(variant for variant in self.variant if not variant.published)

    def published(self, variant: Variant) -> PublishedFigures | None:
        """Returns the published figures of a variant with their setting; None when there are none."""
        if variant.paper is None or variant.published:
            return variant.paper
        own = {key: value for key, value in variant.paper.model_dump().items() if value is not None}
        return variant.paper.model_copy(update={**self.published_setting.model_dump(), **own})

    def overrides_of(self, seed: int) -> tuple[str, ...]:
        """Returns the overrides of every cell with a seed: those of the table, then those of the seed."""
        return (*self.set, *self.seed_set.get(str(seed), ()))

    def opponents(self, variant: Variant) -> tuple[str, ...]:
        """Returns the names of the variants that a variant is compared with.

        By default these are the baseline alone, and none for the baseline and for a published row.
        """
        if variant.published:
            return ()
        named = (variant.against,) if isinstance(variant.against, str) else variant.against
        return tuple(name or self.baseline for name in named if (name or self.baseline) != variant.name)


def load_table(path: Path) -> Table:
    """Returns the table in a TOML file.

    Raises:
        ConfigError: the file cannot be read, or a key, type or value is wrong.
    """
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
        # Strict validation accepts an array for a tuple only from JSON.
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
    except (ValueError, TypeError) as error:  # invalid TOML, or a date, which JSON cannot represent
        raise ConfigError(f"not valid TOML ({error})", where=str(path)) from error
