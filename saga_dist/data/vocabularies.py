"""Vocabularies of the comparison prompt: the words and attributes that depend on the data set."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from saga_dist.config.find import VOCABULARIES as VOCABULARY_FOLDERS
from saga_dist.config.find import find_config
from saga_dist.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of the comparison prompt for one kind of object.

    Args:
        item: the object, singular (``bird``).
        plural: plural of ``item`` (``birds``).
        expert: the expert's profession (``ornithologist``).
        identifies: the label that the expert identifies (``bird species``).
        verdict_question: the property that two images share when the verdict is yes (``same species``).
        verdict_key: JSON key of the verdict (``same_species``).
        attributes: attributes to describe, in order; a hint in parentheses is in the prompt but not in the JSON key.

    Raises:
        ConfigError: a word is empty, there is no attribute, or two attributes have the same JSON key.

    Source: SAGA Appendix (prompt parameters).
    """

    item: str
    plural: str
    expert: str
    identifies: str
    verdict_question: str
    verdict_key: str
    attributes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("item", "plural", "expert", "identifies", "verdict_question", "verdict_key"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ConfigError(f"{name} = {value!r}", where="prompt vocabulary", expected="a non-empty string")
        if not self.attributes or not all(isinstance(name, str) and name.strip() for name in self.attributes):
            raise ConfigError(
                f"attributes = {self.attributes!r}", where="prompt vocabulary", expected="at least one non-empty name"
            )
        keys = self.attribute_keys
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ConfigError(
                f"attributes give the JSON key {repeated[0]!r} twice",
                where="prompt vocabulary",
                fix="rename one of them",
            )

    @property
    def attribute_keys(self) -> tuple[str, ...]:
        """JSON keys of the attributes: their names without hints in parentheses, and with underscores for spaces."""
        return tuple(_json_key(name) for name in self.attributes)


def load_vocabulary(name_or_path: str) -> Vocabulary:
    """Returns a built-in vocabulary by name, or the vocabulary in a TOML file.

    Args:
        name_or_path: a key of ``VOCABULARIES``, or the path of a ``.toml`` file whose keys are the fields of
            ``Vocabulary``; a shipped file is found from every working directory.

    Raises:
        ConfigError: the argument is neither a built-in name nor a readable TOML file, or a key of the file is missing,
            unknown or wrong.
    """
    if name_or_path in VOCABULARIES:
        return VOCABULARIES[name_or_path]
    path = Path(name_or_path)
    if path.suffix != ".toml":
        raise ConfigError(
            f"unknown vocabulary {name_or_path!r}",
            where="prompt.vocabulary",
            expected=f"one of {', '.join(VOCABULARIES)} or the path of a .toml file",
        )
    path = find_config(path, folders=VOCABULARY_FOLDERS)
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the file ({error.strerror})", where=str(path), fix="check the path") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"not valid TOML ({error})", where=str(path)) from error
    return _from_table(table, where=str(path))


def _from_table(table: dict[str, object], *, where: str) -> Vocabulary:
    known = set(Vocabulary.__dataclass_fields__)
    if unknown := sorted(set(table) - known):
        raise ConfigError(f"unknown key {unknown[0]!r}", where=where, expected=f"keys {', '.join(sorted(known))}")
    if missing := sorted(known - set(table)):
        raise ConfigError(f"{missing[0]} is missing", where=where, fix="add it")
    attributes = table.pop("attributes")
    if not isinstance(attributes, list):
        raise ConfigError(f"attributes = {attributes!r}", where=where, expected="a list of strings")
    return Vocabulary(attributes=tuple(attributes), **table)  # type: ignore[arg-type]


def _json_key(name: str) -> str:
    return re.sub(r"\s+", "_", re.sub(r"\([^)]*\)", "", name).strip())


BIRDS = Vocabulary(
    item="bird",
    plural="birds",
    expert="ornithologist",
    identifies="bird species",
    verdict_question="same species",
    verdict_key="same_species",
    attributes=(
        "bill shape", "bill length", "bill color", "head pattern", "crown color", "forehead color", "eye color",
        "nape color", "throat color", "breast color", "breast pattern", "belly color", "belly pattern", "back color",
        "back pattern", "upperparts color", "wing color", "wing pattern", "wing shape", "tail shape", "tail pattern",
        "upper tail color", "under tail color", "underparts color", "shape", "size", "primary color", "leg color",
    ),
)  # fmt: skip

CARS = Vocabulary(
    item="car",
    plural="cars",
    expert="automotive expert",
    identifies="vehicle make, model, and year",
    verdict_question="same make and model",
    verdict_key="same_model",
    attributes=(
        "body style", "number of doors", "front grille", "headlights", "front bumper", "side profile", "roofline",
        "greenhouse", "wheels", "fenders and wheel arches", "rear lights", "rear bumper", "exhaust", "badging",
        "overall proportions", "apparent era", "paint finish",
    ),
)  # fmt: skip

AIRCRAFT = Vocabulary(
    item="aircraft",
    plural="aircraft",
    expert="aviation expert",
    identifies="aircraft make, model, and variant",
    verdict_question="same make, model, and variant",
    verdict_key="same_variant",
    attributes=(
        "number of engines",
        "engine type (turbofan / turboprop / piston / jet)",
        "engine mount position (under-wing / rear-fuselage / tail / in-wing)",
        "engine nacelle shape and size",
        "wing configuration (high / mid / low mounted)",
        "wing planform (swept / straight / delta / variable)",
        "winglets or wingtip shape",
        "tail configuration (conventional / t-tail / cruciform / v-tail)",
        "vertical stabilizer shape",
        "fuselage length and proportions",
        "nose shape",
        "cockpit window layout",
        "cabin window count and spacing",
        "landing gear layout",
        "overall size class (light / regional / narrow-body / wide-body)",
        "apparent era",
        "livery and markings",
    ),
)

STANDIN_BIRDS = Vocabulary(
    item="bird",
    plural="birds",
    expert="ornithologist",
    identifies="bird species",
    verdict_question="same species",
    verdict_key="same_species",
    attributes=("bill", "crown", "breast", "wing", "tail", "legs"),
)

VOCABULARIES: Mapping[str, Vocabulary] = MappingProxyType(
    {"birds": BIRDS, "cars": CARS, "aircraft": AIRCRAFT, "standin_birds": STANDIN_BIRDS}
)
"""Name to built-in vocabulary."""
