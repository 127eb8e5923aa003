"""Makes or finds a sweep, and works on it: the same command begins it, adds a worker to it, and goes on with it.

A sweep is a run directory of kind "sweep" with plan.json and a queue of trials. One of its workers holds its journal, as a
trainer holds that of a run; when that worker dies, another takes the journal over.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunix_lab.errors import UserError
from tunix_lab.lab.preflight import check_places
from tunix_lab.lab.record.environment import environment
from tunix_lab.lab.record.git_state import GitState, git_state
from tunix_lab.lab.record.journal import find_run, list_runs, new_run_id, read_manifest
from tunix_lab.lab.record.jsonl import write_atomically
from tunix_lab.lab.record.manifest import write_manifest
from tunix_lab.lab.record.redaction import Redactor
from tunix_lab.lab.sweeps.queue import Queue
from tunix_lab.lab.sweeps.results import Ranking
from tunix_lab.lab.sweeps.space import Space, Trial, trials_of
from tunix_lab.lab.sweeps.tpe import require_optuna
from tunix_lab.lab.upstream import make_missing
from tunix_lab.lab.versioning import stage_tags
from tunix_lab.spec import LabSettings, LoadedSpec, SpecError, flatten, load, resolved_yaml, spec_hash
from tunix_lab.spec.errors import Place

PLAN = "plan.json"
SPEC = "resolved.yaml"  # what trials run: an edit of the spec's file does not reach a sweep that has begun
KIND = "sweep"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sweep is to try, as plan.json keeps it.

    Attributes:
      name: of the experiment.
      spec: the spec's file, as it was named.
      overrides: `--set` of all trials.
      space: fields, settings and seeds.
      ranking: the metric that ranks.
    """

    name: str
    spec: str
    overrides: tuple[str, ...]
    space: Space
    ranking: Ranking

    def write(self, sweep_dir: Path) -> None:
        """Replaces plan.json."""
        write_atomically(sweep_dir / PLAN, (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, sweep_dir: Path) -> "Plan":
        """The plan in a sweep's directory."""
        value = json.loads((sweep_dir / PLAN).read_bytes())
        space = Space(**{**value["space"], "axes": tuple(value["space"]["axes"])})
        return cls(value["name"], value["spec"], tuple(value["overrides"]), space, Ranking(**value["ranking"]))


def prepare(
    spec: Path, overrides: Sequence[str], space: Space, home: Path, settings: LabSettings, *, fresh: bool = False
) -> Path:
    """The directory of this very sweep, made if there is none.

    A sweep with more random or TPE trials than before is the same sweep, which goes on.

    Args:
      spec: the spec's file.
      overrides: `section.field=value` for all trials.
      space: what to try; its first seed is taken from the spec.
      home: the project folder.
      settings: tracking address, cache folder.
      fresh: make another one even if there is one already.

    Raises:
      UserError: with every mistake in the spec and the values, before anything is made or run.
    """
    _refuse_secrets([("--set", text) for text in overrides] + [(f"--{space.method}", text) for text in space.axes])
    loaded = load(spec, overrides, home)
    space = dataclasses.replace(space, first_seed=loaded.spec.seed)
    if space.method == "tpe":
        require_optuna()
    checked = _check(spec, overrides, space, home)
    _refuse_secrets([(f"{loaded.path}:", f"{k}={v}") for each in checked for k, v in flatten(each.spec).items()])
    check_places(home, settings)
    with _alone(home):
        for trial_spec in {spec_hash(each.spec): each.spec for each in checked}.values():
            make_missing(trial_spec, home)
        found = None if fresh else _find(home, _identity(loaded, space))
        sweep_dir = found or _make(loaded, overrides, space, home)
        plan = Plan.read(sweep_dir)
        if space.method != "grid" and space.settings > plan.space.settings:
            plan = dataclasses.replace(plan, space=space)
            plan.write(sweep_dir)
        Queue(sweep_dir).add(trials_of(plan.space, plan.space.drawn()))
    return sweep_dir


def find_sweep(home: Path, text: str) -> Path:
    """The directory of the sweep whose id is, begins or ends with `text`. Raises UserError."""
    sweep_dir = find_run(home, text)
    if read_manifest(sweep_dir)["kind"] != KIND:
        raise UserError(f"{sweep_dir.name} is a run, not a sweep; `tunix-lab runs` lists both")
    return sweep_dir


def _refuse_secrets(written: Sequence[tuple[str, str]]) -> None:
    """Raises UserError if one of (where it is written, field=value) holds a secret.

    A run replaces it in its record and goes on; a sweep cannot, since its trials are started from what its record says.
    """
    redactor = Redactor.of_process()
    found = dict.fromkeys(f"{where} {text.partition('=')[0]}" for where, text in written if _holds_secret(text, redactor))
    if found:
        raise UserError(
            f"sweep: {', '.join(found)} holds a secret (by its name, by its shape, or as the value of an environment variable), "
            "which would stand in the records of the sweep: leave it in an environment variable, and out of the experiment"
        )


def _holds_secret(text: str, redactor: Redactor) -> bool:
    name, _, value = text.partition("=")
    return redactor.text(text) != text or redactor.tree({name: value}) != {name: value}


def _check(spec: Path, overrides: Sequence[str], space: Space, home: Path) -> list[LoadedSpec]:
    """Loads the spec of every trial. Raises SpecError with each mistake once."""
    # Of a range, its ends are wrong once; the numbers drawn from it would be wrong a hundred times.
    corners = [] if space.method == "grid" else _load_all(spec, overrides, space, space.corners(), home)
    return corners + _load_all(spec, overrides, space, space.drawn(), home)


def _load_all(
    spec: Path, overrides: Sequence[str], space: Space, settings: Sequence[dict[str, str]], home: Path
) -> list[LoadedSpec]:
    loaded, problems = [], []
    for trial in trials_of(space, settings):
        try:
            loaded.append(load(spec, [*overrides, *trial.overrides()], home))
        except SpecError as error:
            problems += [dataclasses.replace(p, place=_place(p.place, overrides, trial, space)) for p in error.problems]
    if problems:
        raise SpecError(problems)
    return loaded


def _place(place: Place | None, overrides: Sequence[str], trial: Trial, space: Space) -> Place | None:
    """Where a user wrote what a trial's override says."""
    named = {f"--set #{number}": text for number, text in enumerate([*overrides, *trial.overrides()], start=1)}
    if place is None or place.source not in list(named)[len(overrides) :]:
        return place
    return Place(f"--{space.method} {named[place.source]}")


def _identity(loaded: LoadedSpec, space: Space) -> str:
    """Tells a sweep from others. The number of drawn settings is no part of it."""
    content = {"spec": spec_hash(loaded.spec), **dataclasses.asdict(dataclasses.replace(space, settings=None))}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _find(home: Path, identity: str) -> Path | None:
    for state in list_runs(home):
        if (state.run_dir / PLAN).is_file() and read_manifest(state.run_dir)["identity"] == identity:
            return state.run_dir
    return None


def _make(loaded: LoadedSpec, overrides: Sequence[str], space: Space, home: Path) -> Path:
    tracking = loaded.spec.tracking
    ranking = Ranking(tracking.primary_metric, tracking.higher_is_better)
    sweep_id = new_run_id(f"sweep-{loaded.spec.name}")
    sweep_dir = home / "runs" / sweep_id
    sweep_dir.mkdir(parents=True)
    Plan(loaded.spec.name, str(loaded.path), tuple(overrides), space, ranking).write(sweep_dir)
    git = git_state(home)
    manifest = _manifest(sweep_id, loaded, space, git)
    write_manifest(sweep_dir, manifest, loaded.source_text, resolved_yaml(loaded.spec), git)
    return sweep_dir


def _manifest(sweep_id: str, loaded: LoadedSpec, space: Space, git: GitState) -> dict[str, Any]:
    spec = loaded.spec
    fields = {field.strip(): values.strip() for field, _, values in (axis.partition("=") for axis in space.axes)}
    title = f"Sweep of {spec.name} over {', '.join(fields) or 'the seed'}."
    return {
        "run_id": sweep_id,
        "name": f"sweep-{spec.name}",
        "experiment": spec.tracking.experiment,
        "kind": KIND,
        "parent_run_id": None,
        "description": f"{title} {spec.description}".strip(),
        "algorithm": spec.algorithm.kind,
        "primary_metric": spec.tracking.primary_metric,
        "higher_is_better": spec.tracking.higher_is_better,
        "seed": spec.seed,
        "identity": _identity(loaded, space),
        "params": {"sweep.method": space.method, "sweep.seeds": space.seeds} | {f"sweep.{k}": v for k, v in fields.items()},
        "tags": {**git.tags(), **stage_tags(), **spec.tracking.tags},
        "datasets": [],
        **environment(),
    }


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One process at a time looks for a sweep and makes it, so that two equal commands make one."""
    runs = home / "runs"
    runs.mkdir(exist_ok=True)
    folder = os.open(runs, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
