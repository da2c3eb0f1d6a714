"""Makes data/kuberay_v1.schema.json from KubeRay's custom resource definitions; for the day of the next version.

    python tests/deploy/compact_crds.py 1.7 ray.io_rayclusters.yaml ray.io_rayjobs.yaml

Descriptions, defaults and status go; every object with named properties is closed, so that a typo is an error; parts
that occur more than once (a pod template does, three times) are shared. 2.3 MB become 39 kB.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).parent / "data" / "kuberay_v1.schema.json"
DROPPED = {"default", "description", "example", "format"}
SHARED_FROM = 150  # characters
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        # As the operator checks them: it adds suffixes of its own.
        "name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def closed(schema: Any, *, names: bool = False) -> Any:
    """Returns ``schema`` as plain JSON schema, closed; ``names``: it maps property names, not keywords."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if names:
        return {name: closed(item) for name, item in schema.items()}
    kept = {
        key: closed(value, names=key == "properties")
        for key, value in schema.items()
        if key not in DROPPED and not key.startswith("x-")
    }
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]} | {key: kept[key] for key in ("pattern",) if key in kept}
    if "properties" in kept and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept.setdefault("additionalProperties", False)
    return kept


def resource(path: Path) -> tuple[str, dict[str, Any]]:
    """Returns kind and closed schema of version v1 in a definition's file."""
    definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
    (version,) = [version for version in definition["versions"] if version["name"] == "v1"]
    schema, kind = closed(version["schema"]["openAPIV3Schema"]), definition["names"]["kind"]
    del schema["properties"]["status"]
    schema["properties"] |= {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": METADATA}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return kind, schema


def is_schema(node: Any) -> bool:
    """True for a schema, False for a map of property names (of which one may be ``type``)."""
    return isinstance(node, dict) and isinstance(node.get("type"), str | list)


def shared(roots: dict[str, Any]) -> dict[str, Any]:
    """Returns the definitions: ``roots`` and the parts that they have in common."""
    counts: Counter[str] = Counter()

    def count(node: Any) -> None:
        if is_schema(node):
            counts[json.dumps(node, sort_keys=True)] += 1
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            count(child)

    count(list(roots.values()))
    repeated = sorted((text for text, times in counts.items() if times > 1 and len(text) > SHARED_FROM), key=len)
    names = {text: f"d{index}" for index, text in enumerate(reversed(repeated))}
    definitions: dict[str, Any] = {}

    def replaced(node: Any, *, top: bool = False) -> Any:
        if not top and is_schema(node) and (text := json.dumps(node, sort_keys=True)) in names:
            if names[text] not in definitions:
                definitions[names[text]] = {}
                definitions[names[text]] = replaced(node, top=True)
            return {"$ref": f"#/$defs/{names[text]}"}
        if isinstance(node, dict):
            return {key: replaced(child) for key, child in node.items()}
        return [replaced(child) for child in node] if isinstance(node, list) else node

    return {kind: replaced(schema, top=True) for kind, schema in roots.items()} | definitions


def main(version: str, *paths: str) -> None:
    """Writes the schema of the definitions at ``paths``."""
    document = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": f"KubeRay {version} (Apache-2.0), RayCluster and RayJob v1, compacted by compact_crds.py.",
        "$defs": shared(dict(resource(Path(path)) for path in paths)),
    }
    TARGET.write_text(json.dumps(document, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
