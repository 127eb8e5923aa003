"""Holds the table of rooms: who may import whom, and which third-party packages may be used where."""

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "tunix_lab"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}


@dataclasses.dataclass(frozen=True)
class Room:
    """What a room may import.

    Attributes:
      ours: rooms, or single modules of a room ("data.tokenizer"), that it may import anywhere.
      third: third-party packages that it may import anywhere.
      ours_inside: the same, inside functions (and for type checkers) only.
      third_inside: the same, inside functions only, because they are slow to import or seldom needed.
    """

    ours: frozenset[str] = frozenset()
    third: frozenset[str] = frozenset()
    ours_inside: frozenset[str] = frozenset()
    third_inside: frozenset[str] = frozenset()


def _room(ours: str = "", third: str = "", ours_inside: str = "", third_inside: str = "") -> Room:
    return Room(*(frozenset(words.split()) for words in (ours, third, ours_inside, third_inside)))


_JAX = "jax flax optax orbax numpy jaxtyping"
_BELOW_TRAINERS = "models generate data tasks ops perf config"

# Every room may import itself and the base: errors.py, _bounds.py, _hub_errors.py, _lazy.py. "config" stands for every config.py.
ROOMS = {
    "base": _room(third="annotated_types", third_inside="huggingface_hub"),
    "config": _room(third="annotated_types", ours_inside="sft.metrics_backends"),
    "ops": _room(third="jax numpy jaxtyping"),
    "perf": _room(third="jax numpy"),
    "spec": _room(ours="config models.sizes", third="annotated_types pydantic pydantic_core pydantic_settings ruamel"),
    "data": _room(ours="config", third="numpy jinja2 tokenizers", third_inside="grain sentencepiece pyarrow huggingface_hub"),
    "tasks": _room(ours="config", third="numpy"),
    "models": _room(
        ours="ops perf config", third="jax flax qwix numpy jaxtyping safetensors einops", third_inside="huggingface_hub"
    ),
    "generate": _room(
        ours="ops perf config models.matrices data.tokenizer data.tokenizer_adapter", third="jax flax numpy jaxtyping"
    ),
    "sft": _room(ours=_BELOW_TRAINERS, third=f"{_JAX} tqdm", third_inside="tensorboardX wandb mlflow"),
    "rl": _room(ours=f"sft {_BELOW_TRAINERS}", third=_JAX),
    "distillation": _room(ours=f"sft {_BELOW_TRAINERS}", third=_JAX),
    "lab": _room(
        ours=f"sft rl distillation spec {_BELOW_TRAINERS}",
        third=f"{_JAX} psutil rich",
        third_inside="mlflow requests sqlalchemy ruamel dvc matplotlib jinja2 optuna ray pyarrow",
    ),
    "cli": _room(ours="spec", third="typer rich", ours_inside="lab data tasks models.sizes models.footprint"),
    # The face of the package is lazy: its table names modules of every room, and imports none.
    "face": _room(),
}

# hasattr, and getattr with a default, hide a misspelt or missing field.
MAY_PROBE = {"tunix_lab._bounds": "annotations of any kind are searched for bounds; only some have __metadata__"}
# An import by name can go around the table.
MAY_IMPORT_BY_NAME = {
    "tunix_lab._lazy": "the lazy tables of packages",
    "tunix_lab.spec.references": "scorers and rewards are named by the user",
    "tunix_lab.rl.reward_worker": "rewards are named by the user",
}
# Statements at module level that do something; all others only define.
MAY_ACT_ON_IMPORT = {
    "tunix_lab.cli.main": "registers the verbs with Typer",
    "tunix_lab.ops.cross_entropy": "jax.custom_vjp: a function gets its derivative by a call",
    "tunix_lab.ops.logps": "jax.custom_vjp: a function gets its derivative by a call",
}
# What a module may import inside functions, since it runs in a process of its own where they do: (packages, why).
OUTSIDE = {
    "tunix_lab.lab.export.outside_check": (
        {"torch", "transformers", "peft", "safetensors", "numpy"},
        "looks at an export as others do; it is started as a script, maybe by another environment's Python",
    )
}
# Loading them can run code that came with the data; the core has no torch.
NOWHERE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "torch"}

_MUTATORS = {"append", "add", "update", "setdefault", "extend", "insert", "pop", "popitem", "clear", "remove", "discard"}


# ---- the checker ---------------------------------------------------------------------------------------------------------


def faults(module: str, source: str) -> Iterator[str]:
    """What is against the rules in the source of a module, one line each."""
    tree = ast.parse(source)
    if not ast.get_docstring(tree):
        yield f"{module}: has no docstring"
    for line, imported, where in imports(tree):
        fault = import_fault(module, imported, where)
        if fault:
            yield f"{module}:{line}: {fault}"
    for line, text in [*_probing(module, tree), *_acting(module, tree), *_global_state(tree)]:
        yield f"{module}:{line}: {text}"


def imports(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, dotted name, "module" | "function" | "types") of every import; types is a TYPE_CHECKING block."""

    def walk(node: ast.AST, where: str) -> Iterator[tuple[int, str, str]]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import(names=names):
                    yield from ((child.lineno, alias.name, where) for alias in names)
                case ast.ImportFrom(module=name, names=names, level=level):
                    full = "." * level + (name or "")
                    submodules = [f"{full}.{alias.name}" for alias in names if f"{full}.{alias.name}" in MODULES]
                    yield from ((child.lineno, imported, where) for imported in submodules or [full])
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    yield from walk(child, "function")
                case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                    yield from walk(child, "types")
                case _:
                    yield from walk(child, where)

    return walk(tree, "module")


def import_fault(module: str, imported: str, where: str) -> str | None:
    """Why `module` may not import `imported` there; None if it may."""
    top = imported.partition(".")[0]
    if imported.startswith("."):
        return "relative import; write the full name"
    if module in OUTSIDE and where == "function" and top in OUTSIDE[module][0]:
        return None
    if top in NOWHERE:
        return f"imports {top}, which no room may"
    if top in sys.stdlib_module_names:
        return None
    room, inside = room_of(module), where != "module"
    rule = ROOMS[room]
    if top != PACKAGE:
        allowed = where == "types" or top in rule.third or (inside and top in rule.third_inside)  # types load nothing
        return None if allowed else f"{room} may not import {top}{_inside(top in rule.third_inside)}"
    if is_face(module) and where == "types":
        return None  # the names of a lazy table, spelt out for type checkers
    target = room_of(imported)
    if target == "base" or (target == room and not is_face(module)):
        return None
    names = {target, imported.removeprefix(f"{PACKAGE}.")}
    if names & rule.ours or (inside and names & rule.ours_inside):
        return None
    return f"{room} may not import {imported}{_inside(bool(names & rule.ours_inside))}"


def room_of(module: str) -> str:
    """The room of a module."""
    parts = module.split(".")[1:]
    if not parts:
        return "face"
    if parts[-1] == "config":
        return "config"
    return "base" if len(parts) == 1 and parts[0] in ("errors", "_bounds", "_hub_errors", "_lazy") else parts[0]


def is_face(module: str) -> bool:
    """Whether the module is a package's `__init__`."""
    return module in MODULES and MODULES[module].name == "__init__.py"


def _inside(allowed_inside: bool) -> str:
    return " outside functions" if allowed_inside else ""


def _probing(module: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="hasattr")) if module not in MAY_PROBE:
                yield node.lineno, "probes with hasattr"
            case ast.Call(func=ast.Name(id="getattr"), args=[_, _, _]) if module not in MAY_PROBE:
                yield node.lineno, "probes with getattr and a default"
            case ast.ExceptHandler(type=ast.Name(id="AttributeError" | "ImportError" | "ModuleNotFoundError")):
                yield node.lineno, "probes by catching an error"
            case ast.ExceptHandler(type=None):
                yield node.lineno, "catches everything"
            case ast.Call(func=ast.Name(id="eval" | "exec" | "__import__")):
                yield node.lineno, "runs code from text"
            case ast.Call(func=ast.Attribute(attr="import_module")) if module not in MAY_IMPORT_BY_NAME:
                yield node.lineno, "imports by name"


def _acting(module: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Statements at module level that do more than define a name."""
    if module in MAY_ACT_ON_IMPORT:
        return
    for node in tree.body:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                pass
            case ast.Expr(value=ast.Constant(value=str())) | ast.AnnAssign(target=ast.Name()):
                pass
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                pass
            case ast.Assign(targets=targets) if all(isinstance(target, ast.Name | ast.Tuple) for target in targets):
                pass
            case _:
                yield node.lineno, "does something when it is imported"


def _global_state(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Names of the module that its functions change, and containers that are born empty, so that something must fill them."""
    names = set()
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) | ast.AnnAssign(target=ast.Name(id=name), value=value):
                names.add(name)
                if _is_empty_container(value):
                    yield node.lineno, f"{name} is an empty container of the module, so something fills it later"
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
        local = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        local |= {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
        yield from _changes(function, names - local)


def _changes(function: ast.AST, names: set[str]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(function):
        match node:
            case ast.Global(names=changed):
                yield node.lineno, f"changes {', '.join(changed)} of the module"
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()) if name in names:
                yield node.lineno, f"changes {name} of the module"
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr)) if name in names and attr in _MUTATORS:
                yield node.lineno, f"changes {name} of the module"


def _is_empty_container(value: ast.expr | None) -> bool:
    match value:
        case ast.Dict(keys=[]) | ast.List(elts=[]):
            return True
        case ast.Call(func=ast.Name(id="dict" | "list" | "set"), args=[], keywords=[]):
            return True
        case ast.Call(func=ast.Name(id="defaultdict" | "deque" | "Counter" | "OrderedDict")):
            return True
    return False


# ---- the house -----------------------------------------------------------------------------------------------------------


def test_every_module_has_a_room():
    assert [module for module in MODULES if room_of(module) not in ROOMS] == []


def test_the_house_keeps_its_rules():
    found = [fault for module, path in MODULES.items() for fault in faults(module, path.read_text("utf-8"))]
    assert found == [], "\n".join(found)


def test_exceptions_are_still_needed():
    for module in {**MAY_PROBE, **MAY_IMPORT_BY_NAME, **MAY_ACT_ON_IMPORT, **OUTSIDE}:
        assert module in MODULES, f"{module} is gone: take it off its list"


def test_mlflow_is_imported_by_its_own_modules_only():
    users = {
        module
        for module, path in MODULES.items()
        for _, imported, _ in imports(ast.parse(path.read_text("utf-8")))
        if imported.partition(".")[0] == "mlflow"
    }
    assert {module for module in users if not module.startswith("tunix_lab.lab.tracking.")} == {"tunix_lab.sft.metrics_backends"}


# What each room of the lab may import of the others; all may import the modules that lie in the lab itself.
LAB_ROOMS = {
    "record": set(),
    "lineage": {"record"},
    "tracking": {"record", "lineage"},
    "export": {"record", "lineage"},
    "pages": {"record", "tracking"},
    "reproduce": {"record", "tracking"},
    "sweeps": {"record", "tracking"},
}


def test_rooms_of_the_lab():
    folders = {path.parent.name for path in (ROOT / PACKAGE / "lab").glob("*/__init__.py")}
    assert folders == set(LAB_ROOMS)
    wrong = []
    for module, path in MODULES.items():
        here = module.split(".")[2:3]
        if module.startswith("tunix_lab.lab.") and here[0] in LAB_ROOMS:
            for line, imported, _ in imports(ast.parse(path.read_text("utf-8"))):
                there = imported.split(".")[2:3] if imported.startswith("tunix_lab.lab.") else []
                if there and there[0] in LAB_ROOMS and there[0] not in {*here, *LAB_ROOMS[here[0]]}:
                    wrong.append(f"{module}:{line}: {imported}")
    assert wrong == []


# ---- the checker checked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tunix_lab.ops.new", "from tunix_lab.models.decoder import Decoder"),
        ("tunix_lab.ops.new", "def f():\n    from tunix_lab.models.decoder import Decoder"),
        ("tunix_lab.ops.new", "import flax"),
        ("tunix_lab.perf.new", "from tunix_lab.ops.masks import causal_mask"),
        ("tunix_lab.models.config", "import jax"),
        ("tunix_lab.models.new", "import huggingface_hub"),
        ("tunix_lab.models.config", "from tunix_lab.models.decoder import Decoder"),
        ("tunix_lab.models.new", "from tunix_lab.generate.sampler import Sampler"),
        ("tunix_lab.generate.new", "from tunix_lab.models.decoder import Decoder"),
        ("tunix_lab.generate.new", "from tunix_lab.data.chat import render_chat"),
        ("tunix_lab.data.new", "import jax"),
        ("tunix_lab.data.new", "import grain"),
        ("tunix_lab.data.new", "import pyarrow"),
        ("tunix_lab.data.new", "from tunix_lab.sft import peft_trainer"),
        ("tunix_lab.tasks.new", "from tunix_lab.data.rows import Row"),
        ("tunix_lab.spec.new", "from tunix_lab.models.decoder import Decoder"),
        ("tunix_lab.spec.new", "import jax"),
        ("tunix_lab.sft.new", "from tunix_lab.lab.record.journal import Journal"),
        ("tunix_lab.sft.new", "from tunix_lab.spec import ExperimentSpec"),
        ("tunix_lab.sft.new", "import mlflow"),
        ("tunix_lab.rl.new", "from tunix_lab.distillation import strategies"),
        ("tunix_lab.distillation.new", "from tunix_lab.rl.rewards import Reward"),
        ("tunix_lab.distillation.config", "from tunix_lab.distillation.strategies import LogitStrategy"),
        ("tunix_lab.spec.new", "from tunix_lab.distillation.strategies import LogitStrategy"),
        ("tunix_lab.sft.new", "from tunix_lab.distillation.strategies import LogitStrategy"),
        ("tunix_lab.lab.new", "import mlflow"),
        ("tunix_lab.lab.new", "from tunix_lab.cli.main import app"),
        ("tunix_lab.cli.new", "from tunix_lab.lab.record.journal import Journal"),
        ("tunix_lab.cli.new", "def f():\n    from tunix_lab.sft.peft_trainer import PeftTrainer"),
        ("tunix_lab.cli.new", "def f():\n    import jax"),
        ("tunix_lab.sft", "from tunix_lab.sft.peft_trainer import PeftTrainer"),
        ("tunix_lab.lab.new", "from . import journal"),
        ("tunix_lab.lab.new", "import pickle"),
        ("tunix_lab.lab.new", "def f():\n    import torch"),
        ("tunix_lab.lab.new", "from matplotlib.figure import Figure"),
        ("tunix_lab.lab.export.outside_check", "import torch"),
        ("tunix_lab.lab.export.outside_check", "def f():\n    import tensorflow"),
        ("tunix_lab.lab.new", "def f(x):\n    return hasattr(x, 'y')"),
        ("tunix_lab.lab.new", "def f(x):\n    return getattr(x, 'y', None)"),
        ("tunix_lab.lab.new", "try:\n    import jax\nexcept ImportError:\n    pass"),
        ("tunix_lab.lab.new", "def f(x):\n    return importlib.import_module(x)"),
        ("tunix_lab.lab.new", "jax.config.update('jax_enable_x64', True)"),
        ("tunix_lab.lab.new", "os.environ['X'] = '1'"),
        ("tunix_lab.lab.new", "_CACHE = {}"),
        ("tunix_lab.lab.new", "_SEEN: set[str] = set()"),
        ("tunix_lab.lab.new", "TABLE = {'a': 1}\ndef f():\n    TABLE['b'] = 2"),
        ("tunix_lab.lab.new", "TABLE = [1]\ndef f():\n    TABLE.append(2)"),
        ("tunix_lab.lab.new", "N = 1\ndef f():\n    global N\n    N = 2"),
    ],
)
def test_a_fault_is_seen(module, line):
    assert list(faults(module, f'"""A module."""\n\n{line}\n'))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tunix_lab.cli.new", "def f():\n    from tunix_lab.lab.record.journal import Journal"),
        ("tunix_lab.cli.new", "from tunix_lab.spec import load"),
        ("tunix_lab.spec.new", "from tunix_lab.sft.config import DpoKnobs"),
        ("tunix_lab.spec.new", "from tunix_lab.distillation.config import LogitKnobs"),
        ("tunix_lab.distillation.new", "from tunix_lab.sft.peft_trainer import PeftTrainer"),
        ("tunix_lab.generate.new", "from tunix_lab.data.tokenizer import Tokenizer"),
        ("tunix_lab.sft.config", "if TYPE_CHECKING:\n    import orbax.checkpoint as ocp"),
        ("tunix_lab.sft.new", "from tunix_lab.models.sharding import place_batch"),
        ("tunix_lab.data.new", "def f():\n    import grain"),
        ("tunix_lab.models.new", "def f():\n    import huggingface_hub"),
        ("tunix_lab.lab.new", "from tunix_lab.lab import build"),
        ("tunix_lab.lab.export.outside_check", "def f():\n    import torch"),
        ("tunix_lab.lab.new", "TABLE = {'a': 1}\ndef f():\n    TABLE = {}\n    TABLE['b'] = 2"),
    ],
)
def test_what_is_allowed_is_not_a_fault(module, line):
    assert list(faults(module, f'"""A module."""\n\n{line}\n')) == []


def test_a_missing_docstring_is_seen():
    assert list(faults("tunix_lab.ops.new", "x = 1\n"))


# ---- what imports really load --------------------------------------------------------------------------------------------

_TRAINING = {"jax", "jaxlib", "flax", "optax", "orbax", "qwix"}
_TRACKING = {"mlflow", "dvc", "sqlalchemy"}
_HEAVY = _TRAINING | _TRACKING | {"grain", "tokenizers", "transformers", "huggingface_hub", "torch", "pandas"}
_CONFIGS = "; ".join(f"import {module}" for module in MODULES if room_of(module) == "config")
_DATA = "; ".join(f"import {module}" for module in MODULES if room_of(module) in ("data", "tasks"))
_PAGES = "import tunix_lab.lab.pages.compare, tunix_lab.lab.pages.compare_page, tunix_lab.lab.pages.report"
_JOURNAL = "import tunix_lab.lab.record.journal, tunix_lab.lab.tracking.sync"


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import tunix_lab", _HEAVY | {"numpy", "pydantic"}),
        ("import tunix_lab.cli.main", _HEAVY | {"numpy", "pydantic"}),
        ("import tunix_lab.spec", _HEAVY | {"numpy", "pydantic"}),
        ("from tunix_lab.spec import load, check_devices", _HEAVY | {"numpy"}),
        (_CONFIGS, _HEAVY | {"numpy", "pydantic"}),
        (_DATA, _TRAINING | _TRACKING | {"grain", "pyarrow", "huggingface_hub", "pandas"}),
        (_JOURNAL, _HEAVY | {"numpy"}),
        ("import tunix_lab.lab.runner", _TRACKING | {"transformers", "huggingface_hub", "torch", "pandas", "matplotlib"}),
        (_PAGES, _HEAVY | {"matplotlib"}),
        ("import tunix_lab.lab.export.export", _TRACKING | {"transformers", "huggingface_hub", "torch", "peft", "pandas"}),
        # The interpreter that runs it as a script may lack everything that this package needs.
        ("import tunix_lab.lab.export.outside_check", _HEAVY | {"numpy", "pydantic"}),
    ],
    ids=["face", "cli", "spec", "load", "configs", "data", "journal", "runner", "pages", "export", "outside"],
)
def test_an_import_does_not_load(statement, unwanted):
    program = f"{statement}; import sys; print(*sorted(set({sorted(unwanted)!r}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.split() == []
