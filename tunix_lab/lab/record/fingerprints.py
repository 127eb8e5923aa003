"""The fingerprints of a run's updates, as its journal keeps them."""

import dataclasses
from pathlib import Path
from typing import Any

from tunix_lab.lab.record.jsonl import strict
from tunix_lab.lab.record.run_state import FINGERPRINTS, complete_lines
from tunix_lab.sft.fingerprint import Fingerprint

__all__ = ["Fingerprint", "read_fingerprints", "to_record"]


def to_record(fingerprint: Fingerprint) -> dict[str, Any]:
    """A fingerprint as strict JSON."""
    return {name: strict(value) for name, value in dataclasses.asdict(fingerprint).items()}


def read_fingerprints(run_dir: str | Path) -> dict[int, Fingerprint]:
    """The fingerprints of a run by step, in the order of steps; of a step that a resumed run made again, the last. {} if none."""
    found = {}
    for _, line in complete_lines(Path(run_dir) / FINGERPRINTS, 0):
        numbers = {name: float(line[name]) for name in ("loss", "grad_norm")}
        found[line["step"]] = Fingerprint(**line | numbers | {"rows": tuple(line["rows"])})
    return dict(sorted(found.items()))
