"""Every YAML of experiments/ parses, opens with its commands, and fits the JSON Schema that editors use."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tunix_lab.spec import load, upstreams
from tunix_lab.spec.json_schema import json_schema
from tunix_lab.spec.yaml_source import read_file

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "experiments").glob("*.yaml"))
BASES = sorted((ROOT / "experiments" / "base").glob("*.yaml"))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@every_page
def test_parses_and_is_named_like_its_file(page):
    assert load(page, home=ROOT).spec.name == page.stem


@every_page
def test_fits_one_device_and_eight(page):
    load(page, home=ROOT, devices=1)
    load(page, ["mesh={fsdp: 2, tp: 4}"], home=ROOT, devices=8)


@every_page
def test_opens_with_its_command_and_one_that_overrides_it(page):
    plain, overriding = (shlex.split(line.removeprefix("# ")) for line in page.read_text().splitlines()[:2])
    name = f"experiments/{page.name}"
    assert plain == ["tunix-lab", "run", name]
    assert overriding[:3] == plain and "--set" in overriding
    load(page, [word for word in overriding[3:] if word != "--set"], home=ROOT)


@every_page
def test_upstream_is_an_experiment_of_this_folder(page):
    for name in upstreams(load(page, home=ROOT).spec):
        assert (page.parent / f"{name}.yaml").is_file()


@pytest.mark.parametrize("file", [*PAGES, *BASES], ids=lambda file: file.stem)
def test_fits_the_schema(file):
    assert list(violations(read_file(file).plain(), json_schema(), json_schema()["$defs"])) == []


@pytest.mark.parametrize(
    "mistake",
    [
        {"seeed": 1},
        {"seed": "1"},
        {"seed": -1},
        {"seed": True},
        {"name": "Not A Name"},
        {"extends": 3},
        {"model": {"family": "lama3"}},
        {"algorithm": {"kind": "dpoo"}},
        {"algorithm": {"kind": "sft", "beta": 0.1}},
        {"optimizer": {"schedule": {"kind": "cosine", "end_factor": 2}}},
        {"samples": {"count": 0}},
    ],
)
def test_schema_sees_mistakes(mistake):
    assert list(violations(mistake, json_schema(), json_schema()["$defs"]))


def test_schema_explains_fields():
    schema = json_schema()
    assert schema["properties"]["seed"]["description"] == "Root of all randomness."
    assert "null: batch_size" in schema["$defs"]["TrainingSpec"]["properties"]["micro_batch_size"]["description"]


_TYPES = {
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}
_CHECKS = {
    "const": lambda value, limit: value == limit,
    "enum": lambda value, limit: value in limit,
    "pattern": lambda value, limit: re.search(limit, value),
    "minLength": lambda value, limit: len(value) >= limit,
    "maxLength": lambda value, limit: len(value) <= limit,
    "minItems": lambda value, limit: len(value) >= limit,
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "exclusiveMaximum": lambda value, limit: value < limit,
}
_STRUCTURE = {"$ref", "$defs", "$schema", "anyOf", "type", "properties", "additionalProperties", "propertyNames", "items"}
_NOTES = {"description", "default"}


def violations(value: Any, schema: dict[str, Any], defs: dict[str, Any], at: str = "") -> list[str]:
    """The subset of JSON Schema that Pydantic writes; a word that is not known here fails the test."""
    assert schema.keys() <= _STRUCTURE | _NOTES | _CHECKS.keys(), schema.keys()
    if "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema and all(violations(value, option, defs, at) for option in schema["anyOf"]):
        return [f"{at}: fits no variant"]
    if "type" in schema:
        wanted = _TYPES[schema["type"]]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            return [f"{at}: not {schema['type']}"]
    found = [
        f"{at}: {word} {schema[word]}" for word, holds in _CHECKS.items() if word in schema and not holds(value, schema[word])
    ]
    if isinstance(value, dict):
        for key, item in value.items():
            found += violations(key, schema.get("propertyNames", {}), defs, f"{at}.{key}")
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            found += [f"{at}.{key}: unknown"] if inner is False else violations(item, inner, defs, f"{at}.{key}")
    if isinstance(value, list):
        found += [text for item in value for text in violations(item, schema.get("items", {}), defs, at)]
    return found
