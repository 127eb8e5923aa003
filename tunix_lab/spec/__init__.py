"""The typed experiment: what a YAML file may say, loaded with the place of every mistake. Imports no jax.

The names below are loaded on first use, so that `tunix-lab --help` does not wait for them.
"""

from typing import TYPE_CHECKING

from tunix_lab._lazy import lazy_names

if TYPE_CHECKING:
    from tunix_lab.spec.checks import check_devices
    from tunix_lab.spec.errors import Place, Problem, SpecError
    from tunix_lab.spec.experiment import ExperimentSpec, upstream, upstreams
    from tunix_lab.spec.hashes import group_hash, resume_hash, spec_hash
    from tunix_lab.spec.loading import LoadedSpec, load
    from tunix_lab.spec.references import import_function
    from tunix_lab.spec.render import flatten, resolved_yaml
    from tunix_lab.spec.settings import LabSettings, find_home, tracking_uri

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ExperimentSpec": "tunix_lab.spec.experiment",
        "LabSettings": "tunix_lab.spec.settings",
        "LoadedSpec": "tunix_lab.spec.loading",
        "Place": "tunix_lab.spec.errors",
        "Problem": "tunix_lab.spec.errors",
        "SpecError": "tunix_lab.spec.errors",
        "check_devices": "tunix_lab.spec.checks",
        "find_home": "tunix_lab.spec.settings",
        "flatten": "tunix_lab.spec.render",
        "group_hash": "tunix_lab.spec.hashes",
        "import_function": "tunix_lab.spec.references",
        "load": "tunix_lab.spec.loading",
        "resolved_yaml": "tunix_lab.spec.render",
        "resume_hash": "tunix_lab.spec.hashes",
        "spec_hash": "tunix_lab.spec.hashes",
        "tracking_uri": "tunix_lab.spec.settings",
        "upstream": "tunix_lab.spec.experiment",
        "upstreams": "tunix_lab.spec.experiment",
    },
)
