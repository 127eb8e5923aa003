"""What an attempt of a run began with: code, versions, devices and settings. A run that goes on with others is told of it."""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunix_lab.lab.record.environment import environment
from tunix_lab.lab.record.git_state import GitState
from tunix_lab.lab.record.redaction import Redactor
from tunix_lab.lab.record.run_state import read_events

_SHOWN = 5


def origin_of(git: GitState, hardware: Mapping[str, Any], resolved: str) -> dict[str, str]:
    """By dotted name, what can make an attempt compute other numbers, or at other times, than the one before it.

    Args:
      git: of the project.
      hardware: see `devices.hardware`.
      resolved: the whole spec as text; how often a run evaluates or saves may change between its attempts.
    """
    around = environment()
    known = {
        "git.commit": git.commit or "",
        "git.patch": hashlib.sha256(git.patch).hexdigest()[:16] if git.patch else "",
        "package": around["package"][:16],
        "spec": hashlib.sha256(resolved.encode()).hexdigest()[:16],
        "hardware.cpu": str(around["cpu"]["model"]),
    }
    known |= {f"versions.{name}": version for name, version in around["versions"].items()}
    known |= {f"environment.{name}": value for name, value in around["environment"].items()}
    known |= {f"hardware.{name}": str(hardware[name]) for name in ("platform", "device_kind", "device_count", "process_count")}
    known |= {f"jax.{name}": str(value) for name, value in hardware["jax"].items()}
    return Redactor.of_process().tree(known)  # a flag may hold an address with a password


def origins(run_dir: Path) -> dict[int, dict[str, str]]:
    """What each attempt of a run began with, by its number; those of older versions, which did not say, are left out."""
    events = (event for event in read_events(run_dir) if event["kind"] == "attempt" and "origin" in event)
    return {event["attempt"]: event["origin"] for event in events}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What differs by name, with both values; "" where one has none."""
    names = sorted(before.keys() | now.keys())
    return {name: (before.get(name, ""), now.get(name, "")) for name in names if before.get(name, "") != now.get(name, "")}


def tell_changes(run_dir: Path) -> None:
    """Says on the terminal what the newest attempt has otherwise than the first: its numbers may differ from there on."""
    known = origins(run_dir)
    if len(known) < 2:
        return
    differences = changed(known[min(known)], known[max(known)])
    for name, (before, now) in list(differences.items())[:_SHOWN]:
        print(f"this run began with another {name}: {before or 'none'}, now {now or 'none'}", file=sys.stderr)
    if len(differences) > _SHOWN:
        print(f"and {len(differences) - _SHOWN} more, see journal/events.jsonl", file=sys.stderr)
    if differences:
        print("from here on its numbers may be others; --fresh starts anew", file=sys.stderr, flush=True)
