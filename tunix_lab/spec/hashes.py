"""Identities of a spec: sha256, in hex, of the canonical JSON of the fields that matter."""

import hashlib
import json
from typing import Any

from tunix_lab.spec.algorithm import Reinforcement
from tunix_lab.spec.experiment import ExperimentSpec
from tunix_lab.spec.render import to_data

_NOT_IN_GROUP = ("name", "description", "seed", "tracking")
_NOT_IN_RESUMED_REWARDS = ("timeout_s", "workers", "memory_mb")
_RESUME_SECTIONS = ("seed", "model", "adapter", "tokenizer", "algorithm", "data", "optimizer")


def spec_hash(spec: ExperimentSpec) -> str:
    """Identity of everything in `spec`."""
    return _digest(to_data(spec))


def group_hash(spec: ExperimentSpec) -> str:
    """Identity of the repetitions of one experiment: all but seed, name, description and tracking."""
    return _digest({key: value for key, value in to_data(spec).items() if key not in _NOT_IN_GROUP})


def resume_hash(spec: ExperimentSpec) -> str:
    """Identity of what must match to continue a run: all that changes the mathematics.

    How often a run evaluates, logs, samples or saves may change between its attempts, and so may the mesh, and what the
    functions of rewards may take.
    """
    data = to_data(spec)
    if isinstance(spec.algorithm, Reinforcement):
        rewards = data["algorithm"]["rewards"]
        data["algorithm"]["rewards"] = {key: value for key, value in rewards.items() if key not in _NOT_IN_RESUMED_REWARDS}
    steps = {
        "max_steps": spec.training.max_steps,
        "batch_size": spec.training.batch_size,
        "rows_per_forward": spec.training.rows_per_forward,
        "scan_layers": spec.training.scan_layers,
        "remat": spec.training.remat,
        "nonfinite": spec.training.nonfinite,
    }
    return _digest({section: data[section] for section in _RESUME_SECTIONS} | {"training": steps})


def _digest(data: dict[str, Any]) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
