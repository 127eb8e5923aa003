"""The JSON Schema of a spec file, for editors.

A file may leave out what it inherits, `kind` too, so nothing is required, and a section fits any variant that knows its fields.
"""

from typing import Any

from tunix_lab.spec.experiment import ExperimentSpec
from tunix_lab.spec.layering import EXTENDS

_EXTENDS = {
    "description": "File or files to inherit from, left to right, relative to this file.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


def json_schema() -> dict[str, Any]:
    """The schema, as draft 2020-12 says it."""
    schema = _relaxed(ExperimentSpec.model_json_schema())
    schema["properties"] = {EXTENDS: _EXTENDS} | schema["properties"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _relaxed(node: Any) -> Any:
    if isinstance(node, list):
        return [_relaxed(item) for item in node]
    if not isinstance(node, dict):
        return node
    relaxed = {}
    for key, value in node.items():
        if key == "properties" or key == "$defs":  # names of fields and sections, not words of the schema
            relaxed[key] = {name: _relaxed(item) for name, item in value.items()}
        elif key == "oneOf":
            relaxed["anyOf"] = _relaxed(value)
        elif key not in ("required", "discriminator", "title"):
            relaxed[key] = _relaxed(value)
    return relaxed
