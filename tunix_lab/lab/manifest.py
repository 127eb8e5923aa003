"""What has to be known to explain a run and to make it again: spec, code, data, environment. Never a secret."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.lab.journal import write_atomically
from tunix_lab.lab.origin import base_identity, teacher_identity
from tunix_lab.lab.sources import data_digests, data_tags, described
from tunix_lab.lab.versioning import dvc_digest, stage_tags
from tunix_lab.spec import ExperimentSpec, flatten, group_hash, resume_hash, spec_hash
from tunix_lab.spec.algorithm import Distill, Teacher
from tunix_lab.spec.model import HubInit, Init

_PACKAGES = (
    "tunix_lab",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "qwix",
    "grain",
    "numpy",
    "tokenizers",
    "mlflow",
    "dvc",
)
_MAX_PARAMS = 60
# Written by a run itself, or by DVC around it: they do not make the code another.
_NOT_CODE = (":!dvc.lock", ":!outputs", ":!runs", ":!data")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The content a run starts from; equal inputs and equal spec are the same experiment.

    Attributes:
      data: digest of every data file by its key, see `sources.DataFile`.
      tokenizer: digest of the tokenizer's files.
      base: identity of the starting weights, see `origin.base_identity`; None from random weights.
      teacher: identity of the teacher's weights, likewise; None where there is no teacher.
    """

    data: dict[str, str]
    tokenizer: str
    base: str | None
    teacher: str | None = None

    def described(self) -> dict[str, str | None]:
        """The hashes by what they are of."""
        return {f"data.{key}": digest for key, digest in self.data.items()} | {
            "tokenizer": self.tokenizer,
            "base": self.base,
            "teacher": self.teacher,
        }

    def identity(self, spec: ExperimentSpec) -> str:
        """sha256 of everything that must be the same for a run to be continued."""
        content = {"spec": resume_hash(spec), **dataclasses.asdict(self)}
        if self.teacher is None:
            del content["teacher"]  # runs of other algorithms keep the identity that they had before there were teachers
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_manifest(
    spec: ExperimentSpec,
    inputs: Inputs,
    *,
    home: Path,
    run_id: str,
    parent_run_id: str | None,
    rows: dict[str, int],
    devices: str,
    out: str,
    trial: str | None = None,
) -> dict[str, Any]:
    """The manifest of a training run, as `lab.mlflow_sync` reads it.

    Args:
      spec: the experiment.
      inputs: what it starts from.
      home: the project folder.
      run_id: of this run.
      parent_run_id: run that made the starting weights.
      rows: number of rows by the same keys as `inputs.data`.
      devices: number and kind, for people.
      out: folder of the outputs, relative to the project where it lies in it.
      trial: `<sweep id>/<number>`; None for a run that is no trial of a sweep.
    """
    git = git_state(home)
    tags = {
        "lab.spec_hash": spec_hash(spec),
        "lab.group": group_hash(spec)[:12],
        "lab.identity": inputs.identity(spec),
        "lab.git.dirty": str(git["dirty"]).lower(),
        "lab.seed": str(spec.seed),
        "lab.devices": devices,
        **_origin_tags(spec, inputs),
        **data_tags(spec, home, inputs.data),
        **git_tags(git),
        **stage_tags(),
        **({} if trial is None else {"lab.trial": trial}),
        **spec.tracking.tags,
    }
    return {
        "run_id": run_id,
        "name": spec.name,
        "experiment": spec.tracking.experiment,
        "kind": "train",
        "parent_run_id": parent_run_id,
        "sweep": None if trial is None else trial.partition("/")[0],
        "trial": trial,
        "description": spec.description,
        "algorithm": spec.algorithm.kind,
        "primary_metric": spec.tracking.primary_metric,
        "higher_is_better": spec.tracking.higher_is_better,
        "seed": spec.seed,
        "identity": inputs.identity(spec),
        "inputs": inputs.described(),
        "out": out,
        "params": _searchable(flatten(spec)),
        "tags": tags,
        "datasets": described(spec, home, inputs.data, rows),
        "git": git,
        **environment(),
    }


def _origin_tags(spec: ExperimentSpec, inputs: Inputs) -> dict[str, str]:
    """What a run started from. A tag `dvc.*` is a hash that DVC shows too; the hub's content has names of its own."""
    tags = {"lab.tokenizer" if spec.tokenizer.path is None else "dvc.tokenizer": inputs.tokenizer}
    tags |= _source_tags("base", spec.model.init, inputs.base)
    return tags | (_source_tags("teacher", spec.algorithm.teacher, inputs.teacher) if isinstance(spec.algorithm, Distill) else {})


def _source_tags(role: str, source: Init | Teacher, identity: str | None) -> dict[str, str]:
    match source:
        case HubInit(repo=repo, revision=commit):
            return {f"lab.{role}_repo": repo, f"lab.{role}_commit": commit}
    return {} if identity is None else {f"dvc.{role}": identity}


def _searchable(values: dict[str, Any]) -> dict[str, Any]:
    """The parameters to search by: no free text and no labels, which have places of their own."""
    kept = {name: value for name, value in values.items() if name != "description" and not name.startswith("tracking.")}
    return dict(list(kept.items())[:_MAX_PARAMS])


def environment() -> dict[str, Any]:
    """Versions, platform and the settings that change numbers."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "versions": versions | {"python": platform.python_version()},
        "platform": platform.platform(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name == "XLA_FLAGS" or name.startswith("JAX_")},
    }


def git_state(home: Path) -> dict[str, Any]:
    """Commit, branch, remote (without credentials) and the difference of the working tree; empty where there is no git."""
    commit = _git(home, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "branch": None, "remote": None, "dirty": False, "diff": ""}
    diff = _git(home, "diff", "HEAD", "--", ".", *_NOT_CODE) or ""
    untracked = _git(home, "ls-files", "--others", "--exclude-standard", "--", ".", *_NOT_CODE) or ""
    remote = _git(home, "remote", "get-url", "origin")
    return {
        "commit": commit,
        "branch": _git(home, "rev-parse", "--abbrev-ref", "HEAD"),
        "remote": re.sub(r"//[^/@]+@", "//", remote) if remote else None,
        "dirty": bool(diff or untracked),
        "diff": diff,
        "untracked": untracked.splitlines(),
    }


def git_tags(git: dict[str, Any]) -> dict[str, str]:
    """The tags by which trackers know a commit."""
    named = {"mlflow.source.git.commit": git["commit"], "mlflow.source.git.branch": git["branch"]}
    return {name: value for name, value in named.items() if value}


def _git(home: Path, *arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(home), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def write_manifest(run_dir: Path, manifest: dict[str, Any], spec_text: str, resolved: str) -> None:
    """Writes manifest.json, spec.yaml, resolved.yaml and, for a dirty tree, dirty.patch."""
    run_dir.mkdir(parents=True, exist_ok=True)
    diff = manifest["git"].pop("diff", "")
    if diff:
        (run_dir / "dirty.patch").write_text(diff + "\n")
    (run_dir / "spec.yaml").write_text(spec_text)
    (run_dir / "resolved.yaml").write_text(resolved)
    write_atomically(run_dir / "manifest.json", (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())


def digest_inputs(
    spec: ExperimentSpec, home: Path, base: Path | None, tokenizer: Tokenizer, teacher: Path | None = None
) -> Inputs:
    """Hashes what a spec names; a tokenizer that lies among the starting weights by its own files alone."""
    named = spec.tokenizer.path
    own = tokenizer.digest() if named is None else dvc_digest(home / named)
    return Inputs(data_digests(spec, home), own, base_identity(spec, base), teacher_identity(spec, teacher))
