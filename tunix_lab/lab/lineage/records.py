"""Reads what the records of a project say of its lineage: dvc.lock, run directories and exports."""

import configparser
import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunix_lab.errors import UserError
from tunix_lab.lab.record.run_state import RunState, list_runs, read_events, read_manifest
from tunix_lab.lab.versioning import file_md5, locked_stages

EXPORTS = "exports.jsonl"
"""In a run directory: one line per export of its model."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A path and the hash that DVC shows for it."""

    path: str
    digest: str


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage as dvc.lock has it.

    Attributes:
      name: as in the lock; of a matrix or foreach `stage@item`.
      cmd: its command.
      deps: what it read.
      outs: what it made.
      run_id: the run that made the outputs, as its run.json among them says; None if there is none that the lock knows.
    """

    name: str
    cmd: str
    deps: tuple[Entry, ...]
    outs: tuple[Entry, ...]
    run_id: str | None = None


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What is known of a run.

    Attributes:
      run_id: the run.
      manifest: as it lies in the run directory; a run that is only in a tracking store has the fields of it that are kept there.
      status: how it stands.
      metrics: newest value by name.
      output: {"path", "params_digest", "dvc_digest"} of the model it left, as far as they are known; None without one.
      checkpoints: {"step", "path", "digest"} each.
      exports: {"to", "exported_at", "dvc_digest", "params_digest", "format", "dtype"} each.
      place: "here", or the tracking store that it was read from.
    """

    run_id: str
    manifest: Mapping[str, Any]
    status: str
    metrics: Mapping[str, float]
    output: Mapping[str, str | None] | None
    checkpoints: tuple[Mapping[str, Any], ...]
    exports: tuple[Mapping[str, Any], ...] = ()
    place: str = "here"


def read_stages(home: Path) -> list[Stage]:
    """The stages of the project's dvc.lock; [] without one."""
    stages = []
    for name, locked in locked_stages(home).items():
        deps, outs = (
            tuple(Entry(entry["path"], entry["md5"]) for entry in locked.get(key, []) if "md5" in entry)
            for key in ("deps", "outs")
        )
        stages.append(Stage(name, locked.get("cmd", ""), deps, outs, _run_of(home, outs)))
    return stages


def _run_of(home: Path, outs: tuple[Entry, ...]) -> str | None:
    for out in outs:
        record = home / out.path
        if record.name == "run.json" and record.is_file() and file_md5(record) == out.digest:
            return json.loads(record.read_text())["run_id"]
    return None


def read_run_records(home: Path) -> list[RunRecord]:
    """The runs of the project that have a manifest, oldest first."""
    records = []
    for state in reversed(list_runs(home)):
        if (state.run_dir / "manifest.json").is_file():
            try:
                records.append(_read_run(state))
            except (UserError, ValueError, KeyError) as error:  # one damaged run does not hide all others
                print(f"left out: {state.run_id}: {error}", file=sys.stderr)
    return records


def _read_run(state: RunState) -> RunRecord:
    checkpoints = {event["step"]: event for event in read_events(state.run_dir) if event["kind"] == "checkpoint"}
    exports = state.run_dir / EXPORTS
    return RunRecord(
        state.run_id,
        read_manifest(state.run_dir),
        state.status,
        state.latest,
        read_output(state.run_dir / "run.json"),
        tuple(checkpoints[step] for step in sorted(checkpoints)),
        tuple(json.loads(line) for line in exports.read_text().splitlines()) if exports.is_file() else (),
    )


def read_output(record: Path) -> dict[str, str | None] | None:
    """What a run.json says of the model that was left; None if there is no such file."""
    if not record.is_file():
        return None
    said = json.loads(record.read_text())
    # Records made before the digest of DVC was kept have no such line.
    return {"path": said["model"], "params_digest": said["params_digest"], "dvc_digest": said.get("dvc_digest")}


class Listings:
    """What folders consist of, by the hash that DVC has for them: read from DVC's cache, where it is."""

    def __init__(self, home: Path) -> None:
        self._cache = cache_folder(home)
        self.read = functools.cache(self._read)

    def _read(self, digest: str) -> dict[str, str] | None:
        """md5 by path in the folder; None if the cache does not have it (or `digest` is that of a file)."""
        path = self._cache / "files" / "md5" / digest[:2] / digest[2:]
        if not digest.endswith(".dir") or not path.is_file():
            return None
        return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_text())}


def digest_of_listing(listing: Mapping[str, str]) -> str:
    """The hash that DVC shows for a folder of such files."""
    names = sorted(listing, key=lambda name: tuple(name.split("/")))
    entries = [{"md5": listing[name], "relpath": name} for name in names]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def cache_folder(home: Path) -> Path:
    """Where DVC keeps content: as its configuration says, else in the project."""
    folder = home / ".dvc" / "cache"
    for name in ("config", "config.local"):
        config = configparser.ConfigParser(interpolation=None)
        config.read(home / ".dvc" / name)
        if config.has_option("cache", "dir"):
            folder = home / ".dvc" / config.get("cache", "dir")
    return folder
