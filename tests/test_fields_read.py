"""Every field that a user may set is read by the code: a knob that turns nothing is worse than none."""

import ast
import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from tunix_lab.sft.config import DPOTrainingConfig, MetricsLoggerOptions, ProfilerOptions, TrainingConfig
from tunix_lab.spec import ExperimentSpec
from tunix_lab.spec.settings import LabSettings

ROOT = Path(__file__).parents[1] / "tunix_lab"
ROOMS = ("cli", "lab", "sft", "rl", "distillation", "data", "models", "generate")

# Read by spec/ itself, and rightly so: the combination of sections is what they are about.
READ_BY_SPEC = {
    "mesh.fsdp": "MeshSpec.shape gives both axes to whoever builds the mesh",
    "mesh.tp": "MeshSpec.shape",
    "training.micro_batch_size": "TrainingSpec.rows_per_forward",
    "model.size": "ModelSpec.decoder_config",
    "model.dtype": "ModelSpec.decoder_config",
    "model.param_dtype": "ModelSpec.decoder_config",
    "training.budget": "TrainingSpec.budget_s",
}


@dataclasses.dataclass(frozen=True)
class Reads:
    """What a body of code reads.

    Attributes:
      attributes: names after a dot, `x.name`; nobody says of which class.
      patterns: (class, keyword) of class patterns, `case Class(keyword=…)`.
    """

    attributes: frozenset[str]
    patterns: frozenset[tuple[str, str]]


def reads(trees: list[ast.Module]) -> Reads:
    """What the modules read. Passing `name=…` on is not reading, and neither is assigning to it."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    # config.get_with_default("name", …) reads by name.
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    named = {
        call.args[0].value for call in calls if call.func.attr == "get_with_default" and isinstance(call.args[0], ast.Constant)
    }
    patterns = {
        (ast.unparse(node.cls).rpartition(".")[2], keyword)
        for node in nodes
        if isinstance(node, ast.MatchClass)
        for keyword in node.kwd_attrs
    }
    return Reads(frozenset(attributes | named), frozenset(patterns))


def fields(section: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted path, class, field) of every field of a section and of the sections in it; `kind` chooses a class, see below."""
    if issubclass(section, BaseModel):
        hints = {name: field.annotation for name, field in section.model_fields.items()}
    else:
        hints = {field.name: field.type for field in dataclasses.fields(section)}
    for name, hint in hints.items():
        inner = list(sections(hint))
        if name != "kind":
            yield f"{prefix}{name}", section.__name__, name
        for candidate in inner:
            yield from fields(candidate, f"{prefix}{name}.")


def sections(hint: object) -> Iterator[type]:
    """The sections that a field with this hint may hold."""
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, BaseModel)):
        yield hint
    for argument in typing.get_args(hint):
        yield from sections(argument)


def variants(section: type) -> Iterator[type]:
    """Every class of a union that `kind` chooses from."""
    hints = typing.get_type_hints(section)
    for hint in hints.values():
        inner = list(sections(hint))
        yield from (candidate for candidate in inner if len(inner) > 1)
        for candidate in inner:
            yield from variants(candidate)


def unread(section: type, found: Reads) -> list[str]:
    """Paths of the fields that nothing reads."""
    return sorted(
        {path for path, owner, name in fields(section) if not {name, (owner, name)} & (found.attributes | found.patterns)}
    )


def _trees(*rooms: str) -> list[ast.Module]:
    return [ast.parse(path.read_text("utf-8")) for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.fixture(scope="module")
def outside_spec() -> Reads:
    return reads(_trees(*ROOMS))


def test_every_field_read(outside_spec):
    assert [path for path in unread(ExperimentSpec, outside_spec) if path not in READ_BY_SPEC] == []


def test_fields_read_by_spec_are_read_there():
    assert READ_BY_SPEC.keys() <= {path for path, _, _ in fields(ExperimentSpec)}
    assert [path for path in unread(ExperimentSpec, reads(_trees("spec"))) if path in READ_BY_SPEC] == []


def test_every_kind_is_told_apart(outside_spec):
    """Each variant of a union is named by a `case` or an isinstance outside spec/, so that none falls through."""
    trees = _trees(*ROOMS)
    named = {ast.unparse(n.cls) for tree in trees for n in ast.walk(tree) if isinstance(n, ast.MatchClass)}
    named |= {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert sorted({variant.__name__ for variant in variants(ExperimentSpec)} - named) == []


def test_every_setting_is_read():
    assert unread(LabSettings, reads(_trees("cli", "lab", "spec"))) == []


@pytest.mark.parametrize("config", [TrainingConfig, DPOTrainingConfig, MetricsLoggerOptions, ProfilerOptions])
def test_every_field_of_a_library_config_is_read(config):
    own = [path for path in unread(config, reads(_trees("sft"))) if "." not in path]  # nested configs have their own turn
    assert own == []


# ---- the checker checked -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Left:
    kind: typing.Literal["left"] = "left"
    width: int = 1


@dataclasses.dataclass
class _Right:
    kind: typing.Literal["right"] = "right"
    height: int = 1


class _Inner(BaseModel):
    depth: int = 0
    colour: str = ""


class _Root(BaseModel):
    side: typing.Annotated[_Left | _Right, "union"] = _Left()
    inner: _Inner | None = None
    size: int = 0


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("use(root.side, root.inner.depth, root.inner.colour, root.size, s.width, s.height)", []),
        ("use(root.side, root.inner.depth, root.inner.colour, s.width, s.height)", ["size"]),
        ("use(root.side, root.inner.depth, root.size, s.width, s.height)", ["inner.colour"]),
        ("use(root.side, root.inner, colour=1, depth=depth, size=2)\nroot.size = 3", [
            "inner.colour", "inner.depth", "side.height", "side.width", "size",
        ]),
        (
            "match root.side:\n  case _Left(width=w): use(w)\n  case _Right(width=w): use(w)\n"
            "use(root.side, root.inner.depth, root.inner.colour, root.size)",
            ["side.height"],
        ),
        ("use(root.side, root.inner.depth, root.inner.colour, s.width, s.height, c.get_with_default('size', 1))", []),
    ],
)  # fmt: skip
def test_an_unread_field_is_seen(source, expected):
    assert unread(_Root, reads([ast.parse(source)])) == expected


def test_variants_are_found():
    assert list(variants(_Root)) == [_Left, _Right]
