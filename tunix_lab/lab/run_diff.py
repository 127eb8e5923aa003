"""How two runs differ and where they part: configuration, environment, data, and the first update that they do not share."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunix_lab.lab.divergence import Divergence, MetricGap, first_divergence, metric_gaps
from tunix_lab.lab.record.attempt import changed, origins
from tunix_lab.lab.record.environment import read_env_lock
from tunix_lab.lab.record.fingerprints import read_fingerprints
from tunix_lab.lab.record.run_state import ENV_LOCK, PATCH, read_manifest, read_metrics
from tunix_lab.lab.rollout_diff import RolloutGap, blamed_on_rollout, first_rollout_gap

ABSENT = "–"
_NOT_COMPARED = ("description", "name", "tracking")  # labels, which change no number


@dataclasses.dataclass(frozen=True)
class Difference:
    """Something that two runs have differently.

    Attributes:
      name: what it is.
      a: its value in the first run; "–" where it has none.
      b: its value in the second run.
    """

    name: str
    a: str
    b: str


@dataclasses.dataclass(frozen=True)
class RunDiff:
    """What tells one run from another.

    Attributes:
      a: id of the first run.
      b: id of the second run.
      configuration: fields of the spec that differ.
      environment: code, versions, devices and flags that differ.
      data: inputs that differ, by the hash of their content.
      went_on: for each run what an attempt of it had otherwise than its first, so that its record is not all of it.
      before: what can have made the runs differ before their first update.
      updates: first and last fingerprinted step of each run; None where it has no fingerprints.
      divergence: the first update that they do not share; None if there is none among those that both have.
      metrics: the train and eval values that differ, in order.
      compared: number of train and eval values that both have.
      only: number of those that only the first run has, and only the second.
      params: digest of the final parameters of each run; None where it left none.
      rollout: the first rollout of training that they do not share; None if there is none.
    """

    a: str
    b: str
    configuration: list[Difference]
    environment: list[Difference]
    data: list[Difference]
    went_on: tuple[list[Difference], list[Difference]]
    before: list[str]
    updates: tuple[tuple[int, int] | None, tuple[int, int] | None]
    divergence: Divergence | None
    metrics: list[MetricGap]
    compared: int
    only: tuple[int, int]
    params: tuple[str | None, str | None]
    rollout: RolloutGap | None = None

    @property
    def diverged(self) -> bool:
        """Whether something that both runs recorded of their training differs."""
        return self.divergence is not None or bool(self.metrics) or (None not in self.params and self.params[0] != self.params[1])

    @property
    def same_updates(self) -> bool:
        """Whether both runs made the same updates, as far as recorded, and neither stopped earlier."""
        return not self.diverged and self.updates[0] == self.updates[1]


def diff_runs(a: Path, b: Path) -> RunDiff:
    """Compares what two run directories hold.

    Raises:
      UserError: one of them is no run directory.
    """
    one, two = read_manifest(a), read_manifest(b)
    data = differences(inputs_of(one), inputs_of(two))
    configuration = differences(configuration_of(a, one), configuration_of(b, two))
    prints = read_fingerprints(a), read_fingerprints(b)
    values = metrics_of(a), metrics_of(b)
    roles = {difference.name.split()[0] for difference in data}
    before = _before(configuration, data)
    same_data = not roles & {"data", "tokenizer", "chat_template"}
    rollout = first_rollout_gap(a, b)
    return RunDiff(
        a=a.name,
        b=b.name,
        configuration=configuration,
        environment=environment_differences(a, one, b, two),
        data=data,
        went_on=(went_on_with(a), went_on_with(b)),
        before=before,
        updates=tuple((min(steps), max(steps)) if steps else None for steps in prints),
        divergence=blamed_on_rollout(first_divergence(*prints, same_data=same_data, same_start=not before), rollout),
        metrics=metric_gaps(*values),
        compared=len(values[0].keys() & values[1].keys()),
        only=(len(values[0].keys() - values[1].keys()), len(values[1].keys() - values[0].keys())),
        params=(params_digest(a), params_digest(b)),
        rollout=rollout,
    )


def inputs_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Hash of each input by its role and name; records made before inputs had a list of their own name their data sets."""
    if "input_files" not in manifest:
        return {f"data {entry['context']} {entry['path']}": entry["digest"] for entry in manifest["datasets"]}
    found = {_role(entry): entry["digest"] or ABSENT for entry in manifest["input_files"]}
    return found | {"chat_template": manifest["chat_template"] or ABSENT}


def _role(entry: Mapping[str, Any]) -> str:
    return f"{entry['role']} {entry['name']}" if entry["name"] and not entry["role"].startswith("data") else entry["role"]


def configuration_of(run_dir: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Every field of the resolved spec as text by its dotted name; of a run without one, the parameters of its manifest."""
    from ruamel.yaml import YAML

    path = run_dir / "resolved.yaml"
    if not path.is_file():
        return {name: _text(value) for name, value in manifest["params"].items()}
    fields = (YAML(typ="safe").load(path) or {}).items()
    return {name: text for key, value in fields if key not in _NOT_COMPARED for name, text in _leaves(value, key)}


def _leaves(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        return [(name, _text(value))]
    return [leaf for key, item in value.items() for leaf in _leaves(item, f"{name}.{key}")]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def environment_differences(a: Path, one: Mapping[str, Any], b: Path, two: Mapping[str, Any]) -> list[Difference]:
    """Code, versions, devices and flags of two runs that are not the same."""
    return differences(environment_of(a, one), environment_of(b, two))


def environment_of(run_dir: Path | None, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Everything about the surroundings of a run as text by name; what older records lack is absent.

    Args:
      run_dir: with the files beside the manifest; None takes the manifest alone.
      manifest: of the run.
    """
    git = manifest.get("git", {})
    found = {"git commit": git.get("commit")}
    changes = {} if run_dir is None else patched(run_dir)
    found |= {f"code {path}": f"changed ({digest[:8]})" for path, digest in changes.items()}
    found |= {f"code {entry['path']}": f"untracked ({(entry['sha256'] or ABSENT)[:8]})" for entry in _untracked(git)}
    found |= {"package source": manifest.get("package", ABSENT)[:12], "platform": manifest.get("platform")}
    found |= {f"lock file {name}": digest[:12] for name, digest in manifest.get("lock_files", {}).items()}
    found |= {f"cpu {name}": value for name, value in manifest.get("cpu", {}).items()}
    hardware = dict(manifest.get("hardware", {}))
    found |= {f"jax {name}": value for name, value in hardware.pop("jax", {}).items()}
    found |= {name.replace("_", " "): value for name, value in hardware.items()}
    versions = dict(manifest.get("versions", {}))
    if run_dir is not None and (run_dir / ENV_LOCK).is_file():
        locked = read_env_lock((run_dir / ENV_LOCK).read_text())
        versions = {"python": versions["python"], **locked}
    found |= {f"version {name.replace('_', '-')}": value for name, value in versions.items()}
    found |= {f"${name}": value for name, value in manifest.get("environment", {}).items()}
    return {name: _text(value) for name, value in found.items() if value not in (None, ABSENT)}


def went_on_with(run_dir: Path) -> list[Difference]:
    """What later attempts of a run had otherwise than its first: code, versions, devices or settings of that attempt.

    An attempt is told once it differs from what the one before it had, and not again as long as that stays.
    """
    known = origins(run_dir)
    found: list[Difference] = []
    told: dict[str, tuple[str, str]] = {}
    for attempt in sorted(known)[1:]:
        now = changed(known[min(known)], known[attempt])
        new = {name: pair for name, pair in now.items() if told.get(name) != pair}
        found += [Difference(f"attempt {attempt} {name}", *(text or ABSENT for text in pair)) for name, pair in new.items()]
        told = now
    return found


def _untracked(git: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Entries of untracked files; older records have names only."""
    return [entry for entry in git.get("untracked", []) if isinstance(entry, dict)]


def patched(run_dir: Path) -> dict[str, str]:
    """Hash of the changes by file of a run's patch; {} without one."""
    path = run_dir / PATCH
    sections = re.split(rb"^(?=diff --git )", path.read_bytes() if path.is_file() else b"", flags=re.MULTILINE)
    names = ((re.match(rb"diff --git (?:a/|\"a/)(.*?)\"? \"?b/", section), section) for section in sections)
    return {name[1].decode(errors="replace"): hashlib.sha256(section).hexdigest() for name, section in names if name is not None}


def metrics_of(run_dir: Path) -> dict[tuple[int, str], float]:
    """The results of a run: train and eval values by step and name. Throughput and memory are no results."""
    return {
        (step, name): value
        for _, step, values in read_metrics(run_dir)
        for name, value in values.items()
        if name.startswith(("train/", "eval/"))
    }


def params_digest(run_dir: Path) -> str | None:
    """Digest of the parameters that a run left; None where it left none."""
    path = run_dir / "run.json"
    return json.loads(path.read_text())["params_digest"] if path.is_file() else None


def differences(a: Mapping[str, str], b: Mapping[str, str]) -> list[Difference]:
    """The names whose values are not the same, in the order of the first mapping."""
    names = list(dict.fromkeys([*a, *b]))
    return [Difference(name, a.get(name, ABSENT), b.get(name, ABSENT)) for name in names if a.get(name) != b.get(name)]


def _before(configuration: list[Difference], data: list[Difference]) -> list[str]:
    """Reasons for which two runs can have begun with other parameters."""
    found = [f"the starting weights differ ({entry.name})" for entry in data if entry.name.startswith("base")]
    for entry in configuration:
        if entry.name == "seed":
            found.append(f"the seeds differ ({entry.a}, {entry.b}): random parameters and the order of rows follow from them")
        elif entry.name.startswith(("model.", "adapter.")):
            found.append(f"the models differ ({entry.name})")
    return found
