"""Lazy re-exports for package `__init__` files (PEP 562): a name is imported when it is first used."""

import importlib
from collections.abc import Callable, Mapping


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose public names live in other modules.

    Args:
      package: the package's `__name__`.
      homes: public name -> module that defines it.
    """

    def __getattr__(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return vars(importlib.import_module(homes[name]))[name]

    return __getattr__, lambda: sorted(homes)
