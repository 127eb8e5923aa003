"""The typed experiment: what a YAML file may say, loaded with the place of every mistake. Imports no jax.

The names below are loaded on first use, so that `tunix-lab --help` does not wait for them.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunix_lab.spec.checks import check_devices
    from tunix_lab.spec.errors import Place, Problem, SpecError
    from tunix_lab.spec.experiment import ExperimentSpec, upstream
    from tunix_lab.spec.hashes import group_hash, resume_hash, spec_hash
    from tunix_lab.spec.loading import LoadedSpec, load
    from tunix_lab.spec.references import import_function
    from tunix_lab.spec.render import flatten, resolved_yaml
    from tunix_lab.spec.settings import LabSettings, find_home, tracking_uri

_HOMES = {
    "ExperimentSpec": "experiment",
    "LabSettings": "settings",
    "LoadedSpec": "loading",
    "Place": "errors",
    "Problem": "errors",
    "SpecError": "errors",
    "check_devices": "checks",
    "find_home": "settings",
    "flatten": "render",
    "group_hash": "hashes",
    "import_function": "references",
    "load": "loading",
    "resolved_yaml": "render",
    "resume_hash": "hashes",
    "spec_hash": "hashes",
    "tracking_uri": "settings",
    "upstream": "experiment",
}

__all__ = [
    "ExperimentSpec",
    "LabSettings",
    "LoadedSpec",
    "Place",
    "Problem",
    "SpecError",
    "check_devices",
    "find_home",
    "flatten",
    "group_hash",
    "import_function",
    "load",
    "resolved_yaml",
    "resume_hash",
    "spec_hash",
    "tracking_uri",
    "upstream",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(importlib.import_module(f"{__name__}.{_HOMES[name]}"))[name]


def __dir__() -> list[str]:
    return __all__
