"""The identity of a run by content: what its steps depend on beside its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

_KEY = b"saga_dist.identity"


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Digests of weights and data, and the version of the code; kept in checkpoints and recordings."""

    backbone: str
    """sha256 of the frozen MLLM's weights; empty for a run without an MLLM."""
    tower: str
    """sha256 of the vision tower's weights before the first step."""
    split: str
    """sha256 of the images, classes and labels of all splits."""
    code: str
    """Version of the package, and its commit where it is known."""

    def to_json(self) -> dict[str, str]:
        """Returns the digests by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> RunIdentity | None:
        """Returns the identity that ``to_json`` described; None for None, and where a digest is missing."""
        try:
            return None if values is None else cls(**values)
        except TypeError:
            return None

    def differences(self, other: RunIdentity) -> tuple[str, ...]:
        """Returns in words what differs from another identity, the version of the code left out.

        A run without an MLLM has no backbone that could differ.
        """
        words = {
            "backbone": "the frozen MLLM's weights",
            "tower": "the vision tower's initial weights",
            "split": "the data set's images or classes",
        }
        pairs = ((text, getattr(self, name), getattr(other, name)) for name, text in words.items())
        return tuple(text for text, own, others in pairs if own and others and own != others)


def with_identity(schema: pa.Schema, identity: RunIdentity | None) -> pa.Schema:
    """Returns a schema with the identity in its metadata; for None the schema itself."""
    if identity is None:
        return schema
    return schema.with_metadata({**(schema.metadata or {}), _KEY: json.dumps(identity.to_json()).encode()})


def identity_in(schema: pa.Schema) -> RunIdentity | None:
    """Returns the identity in a schema's metadata; None where there is none, as in files of earlier versions."""
    content = (schema.metadata or {}).get(_KEY)
    try:
        values = None if content is None else json.loads(content)
    except ValueError:
        return None
    return RunIdentity.from_json(values) if isinstance(values, dict) else None
