"""A function that a spec names as `package.module:function`: found without running it, imported when it is needed."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunix_lab.errors import UserError
from tunix_lab.spec.errors import did_you_mean


def locate(reference: str, home: Path) -> Path:
    """The file that defines the function; looks on Python's path, then in the project folder `home`. Runs no code.

    Raises:
      LookupError: there is no such module, or it has no such function.
    """
    module, _, function = reference.partition(":")
    file = _module_file(module, home)
    if file.suffix == ".py":
        names = _top_level_names(file)
        if function not in names and "__getattr__" not in names:
            raise LookupError(f"{module} has no function {function!r}{did_you_mean(function, names)}")
    return file


def import_function(reference: str, home: Path) -> Callable[..., Any]:
    """The function itself; its module may lie in the project folder `home`. Raises UserError where there is none."""
    try:
        locate(reference, home)
    except LookupError as error:
        raise UserError(str(error)) from None
    module, _, function = reference.partition(":")
    with _on_path(home):
        found = getattr(importlib.import_module(module), function)
    if not callable(found):
        raise UserError(f"{reference} is not a function")
    return found


def _module_file(module: str, home: Path) -> Path:
    top, *rest = module.split(".")
    file = _package_file(top, home)
    for index, part in enumerate(rest, start=1):
        parent = ".".join((top, *rest[: index - 1]))
        if file.name != "__init__.py" and not file.is_dir():
            raise LookupError(f"{parent} is a module, not a package, and holds no {part!r}")
        folder = file if file.is_dir() else file.parent
        file = _inside(folder, part, parent)
    return file


def _package_file(top: str, home: Path) -> Path:
    with _on_path(home):
        found = importlib.util.find_spec(top)  # of a top-level name: imports nothing
    if found is None:
        raise LookupError(f"no module {top!r}, neither installed nor in the project folder {home}")
    if found.submodule_search_locations and found.origin is None:
        return Path(next(iter(found.submodule_search_locations)))  # a package without __init__.py
    return Path(found.origin or top)


def _inside(folder: Path, part: str, parent: str) -> Path:
    for candidate in (folder / part / "__init__.py", folder / f"{part}.py", *sorted(folder.glob(f"{part}.*.so")), folder / part):
        if candidate.is_file() or (candidate == folder / part and candidate.is_dir()):
            return candidate
    known = [path.stem for path in folder.glob("*") if path.suffix == ".py" or path.is_dir()]
    raise LookupError(f"{parent} has no module {part!r}{did_you_mean(part, known)}")


def _top_level_names(file: Path) -> Sequence[str]:
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        raise LookupError(f"{file} is not valid Python: {error}") from None
    return tuple(_bound_names(tree.body))


def _bound_names(statements: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that the statements bind, also under `if`, `try` and `with`."""
    for node in statements:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in names)
            case ast.If(body=body, orelse=orelse):
                yield from _bound_names([*body, *orelse])
            case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=finalbody):
                yield from _bound_names([*body, *orelse, *finalbody, *(s for handler in handlers for s in handler.body)])
            case ast.With(body=body):
                yield from _bound_names(body)


@contextmanager
def _on_path(home: Path) -> Iterator[None]:
    """`home` at the end of Python's path, for the time of one look-up."""
    entry = str(home)
    if entry in sys.path:
        yield
        return
    sys.path.append(entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
