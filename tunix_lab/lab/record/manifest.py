"""What has to be known to explain a run and to make it again: spec, code, data, environment. Never a secret."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from tunix_lab.data.tokenizer import Tokenizer
from tunix_lab.lab.origin import (
    base_identity,
    base_name,
    critic_folder,
    critic_identity,
    critic_name,
    teacher_identity,
    teacher_name,
)
from tunix_lab.lab.record.environment import env_lock, environment, lock_file_digests
from tunix_lab.lab.record.git_state import GitState
from tunix_lab.lab.record.journal import write_atomically
from tunix_lab.lab.record.redacted_yaml import redacted_yaml
from tunix_lab.lab.record.redaction import Redactor
from tunix_lab.lab.record.run_state import BUNDLE, ENV_LOCK, MANIFEST, PATCH
from tunix_lab.lab.record.untracked import bundle_untracked
from tunix_lab.lab.sources import SPLITS, data_digests, data_files, data_tags, described
from tunix_lab.lab.versioning import dvc_digest, stage_tags
from tunix_lab.spec import ExperimentSpec, flatten, group_hash, resume_hash, spec_hash
from tunix_lab.spec.algorithm import Distill, Ppo, Reinforcement, Teacher
from tunix_lab.spec.model import HubInit, Init
from tunix_lab.spec.references import locate
from tunix_lab.spec.rl import CriticSpec
from tunix_lab.spec.rl_checks import updates_per_rollout

_MAX_PARAMS = 100  # MLflow takes no more at a time


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The content a run starts from; equal inputs and equal spec are the same experiment.

    Attributes:
      data: digest of every data file by its key, see `sources.DataFile`.
      tokenizer: digest of the tokenizer's files.
      base: identity of the starting weights, see `origin.base_identity`; None from random weights.
      teacher: identity of the teacher's weights, likewise; None where there is no teacher.
      critic: identity of the weights of a critic that does not start from the actor's; None where there is none.
    """

    data: dict[str, str]
    tokenizer: str
    base: str | None
    teacher: str | None = None
    critic: str | None = None

    def described(self) -> dict[str, str | None]:
        """The hashes by what they are of."""
        return {f"data.{key}": digest for key, digest in self.data.items()} | {
            "tokenizer": self.tokenizer,
            "base": self.base,
            "teacher": self.teacher,
            **({} if self.critic is None else {"critic": self.critic}),
        }

    def identity(self, spec: ExperimentSpec) -> str:
        """sha256 of everything that must be the same for a run to be continued."""
        content = {"spec": resume_hash(spec), **dataclasses.asdict(self)}
        for role in ("teacher", "critic"):
            if content[role] is None:
                del content[role]  # runs of other algorithms keep the identity that they had before there were such roles
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_manifest(
    spec: ExperimentSpec,
    inputs: Inputs,
    *,
    home: Path,
    run_id: str,
    parent_run_id: str | None,
    rows: dict[str, int],
    hardware: dict[str, Any],
    git: GitState,
    command: dict[str, Any],
    chat_template: str | None,
    out: str,
    trial: str | None = None,
) -> dict[str, Any]:
    """The manifest of a training run, as `lab.tracking.sync` and `lab.reproduce.reproduce` read it.

    Args:
      spec: the experiment.
      inputs: what it starts from.
      home: the project folder.
      run_id: of this run.
      parent_run_id: run that made the starting weights.
      rows: number of rows by the same keys as `inputs.data`.
      hardware: see `devices.hardware`.
      git: of the project.
      command: see `environment.command_line`.
      chat_template: hash of its text.
      out: folder of the outputs, relative to the project where it lies in it.
      trial: `<sweep id>/<number>`; None for a run that is no trial of a sweep.
    """
    tags = {
        "lab.spec_hash": spec_hash(spec),
        "lab.group": group_hash(spec)[:12],
        "lab.identity": inputs.identity(spec),
        "lab.seed": str(spec.seed),
        "lab.devices": f"{hardware['device_count']} x {hardware['device_kind']}",
        **_origin_tags(spec, inputs),
        **data_tags(spec, home, inputs.data),
        **git.tags(),
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
        "checkpoint_every": spec.checkpoint.every,
        "rollouts": rollout_cadence(spec),
        "seed": spec.seed,
        "identity": inputs.identity(spec),
        "inputs": inputs.described(),
        "out": out,
        "params": _searchable(flatten(spec)),
        "tags": tags,
        "datasets": described(spec, home, inputs.data, rows),
        "input_files": input_files(spec, home, inputs),
        "chat_template": chat_template,
        "command": command,
        "hardware": hardware,
        "lock_files": lock_file_digests(home),
        **environment(),
    }


def rollout_cadence(spec: ExperimentSpec) -> dict[str, int] | None:
    """Updates between the rollouts of training and of evaluations, and those of the whole run; None where nothing is sampled."""
    if not isinstance(spec.algorithm, Reinforcement):
        return None
    return {"train": updates_per_rollout(spec), "eval": spec.training.eval_every, "last": spec.training.max_steps}


def input_files(spec: ExperimentSpec, home: Path, inputs: Inputs) -> list[dict[str, Any]]:
    """Every file and folder that a run reads, with its hash; `path` is None for what the hub keeps or another entry holds."""
    files = [file for split in SPLITS for file in data_files(spec, home, split)]
    entries = [_entry(f"data {file.key}", file.name, inputs.data[file.key], file.is_of_the_project) for file in files]
    entries.append(_entry("tokenizer", spec.tokenizer.path, inputs.tokenizer, spec.tokenizer.path is not None))
    for role, (name, commit), identity in (
        ("base", base_name(spec, home), inputs.base),
        ("teacher", teacher_name(spec, home), inputs.teacher),
        ("critic", critic_name(spec, home), inputs.critic),
    ):
        if identity is not None:
            entries.append(_entry(role, name, identity, commit is None))
    if spec.samples is not None and spec.samples.prompts is not None:
        entries.append(_entry("prompts", spec.samples.prompts, dvc_digest(home / spec.samples.prompts), True))
    # Code comes with git or with the package; its hash is to compare.
    if spec.samples is not None and spec.samples.scorer is not None:
        entries.append(_entry("scorer", spec.samples.scorer, _code_digest(spec.samples.scorer, home), False))
    if isinstance(spec.algorithm, Reinforcement):
        for reward in spec.algorithm.rewards.functions:
            entries.append(_entry(f"reward {reward.label}", reward.function, _code_digest(reward.function, home), False))
    return entries


def _code_digest(function: str, home: Path) -> str | None:
    """Hash of the file that defines a function."""
    file = locate(function, home)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _entry(role: str, name: str | None, digest: str | None, in_project: bool) -> dict[str, Any]:
    return {"role": role, "name": name, "path": name if in_project else None, "digest": digest}


def _origin_tags(spec: ExperimentSpec, inputs: Inputs) -> dict[str, str]:
    """What a run started from. A tag `dvc.*` is a hash that DVC shows too; the hub's content has names of its own."""
    tags = {"lab.tokenizer" if spec.tokenizer.path is None else "dvc.tokenizer": inputs.tokenizer}
    tags |= _source_tags("base", spec.model.init, inputs.base)
    match spec.algorithm:
        case Distill(teacher=source):
            tags |= _source_tags("teacher", source, inputs.teacher)
        case Ppo(critic=CriticSpec(init=source)) if source is not None:
            tags |= _source_tags("critic", source, inputs.critic)
    return tags


def _source_tags(role: str, source: Init | Teacher, identity: str | None) -> dict[str, str]:
    match source:
        case HubInit(repo=repo, revision=commit):
            return {f"lab.{role}_repo": repo, f"lab.{role}_commit": commit}
    return {} if identity is None else {f"dvc.{role}": identity}


def _searchable(values: dict[str, Any]) -> dict[str, Any]:
    """The parameters to search by: no free text and no labels, which have places of their own."""
    kept = {name: value for name, value in values.items() if name != "description" and not name.startswith("tracking.")}
    return dict(list(kept.items())[:_MAX_PARAMS])


def write_manifest(
    run_dir: Path, manifest: dict[str, Any], spec_text: str, resolved: str, git: GitState, redactor: Redactor | None = None
) -> None:
    """Writes manifest.json, and beside it both forms of the spec, the versions, and how the code differs from its commit.

    Nothing that looks like a secret is written: it is replaced, or the file is left out, and the manifest says which.

    Args:
      run_dir: receives the files.
      manifest: see `make_manifest`.
      spec_text: the spec as it was given.
      resolved: the same with all values.
      git: of the project.
      redactor: finds secrets; None takes one that knows those of this process's environment.
    """
    redactor = Redactor.of_process() if redactor is None else redactor
    run_dir.mkdir(parents=True, exist_ok=True)
    texts = {"spec.yaml": spec_text, "resolved.yaml": resolved}
    others = {ENV_LOCK: env_lock().encode()} | ({PATCH: git.patch} if git.patch else {})
    raw = {name: text.encode() for name, text in texts.items()} | others
    files = {name: redacted_yaml(text, redactor).encode() for name, text in texts.items()}
    files |= {name: redactor.data(content) for name, content in others.items()}
    redacted = [name for name in raw if files[name] != raw[name]]
    untracked = None if git.top is None else bundle_untracked(git.top, git.untracked, redactor)
    if untracked is not None and untracked.bundle is not None:
        files[BUNDLE] = untracked.bundle
    left_out = [*git.left_out, *([] if untracked is None else untracked.left_out)]
    manifest = redactor.tree(manifest) | {
        "git": redactor.tree(
            {
                "commit": git.commit,
                "branch": git.branch,
                "remote": git.remote,
                "prefix": git.prefix,
                "dirty": git.dirty,
                "untracked": [] if untracked is None else untracked.files,
                "untracked_more": 0 if untracked is None else untracked.more,
                "left_out": [{"path": path, "reason": reason} for path, reason in left_out],
            }
        ),
        "redacted": redacted,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
    }
    for name, content in files.items():
        (run_dir / name).write_bytes(content)
    write_atomically(run_dir / MANIFEST, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())


def digest_inputs(
    spec: ExperimentSpec, home: Path, base: Path | None, tokenizer: Tokenizer, teacher: Path | None = None
) -> Inputs:
    """Hashes what a spec names; a tokenizer that lies among the starting weights by its own files alone."""
    named = spec.tokenizer.path
    own = tokenizer.digest() if named is None else dvc_digest(home / named)
    critic = critic_identity(spec, critic_folder(spec, home))
    return Inputs(data_digests(spec, home), own, base_identity(spec, base), teacher_identity(spec, teacher), critic)
