"""Which run goes on: the interrupted one of the very same experiment, or the one that is named; and what keeps it from that."""

from pathlib import Path
from typing import Any

from tunix_lab.errors import EnvironmentProblem, UserError
from tunix_lab.lab.record.journal import RunState, find_run, list_runs, read_manifest, run_status
from tunix_lab.lab.record.manifest import Inputs
from tunix_lab.lab.record.run_state import MANIFEST
from tunix_lab.spec import ExperimentSpec

FAULTS_SHOWN = 5


def interrupted_run(home: Path, spec: ExperimentSpec, inputs: Inputs, trial: str | None = None) -> str | None:
    """The newest run of this very experiment that has not finished; a changed input makes it another experiment.

    A trial of a sweep goes on with its own run alone, and nothing else with that.

    Raises:
      EnvironmentProblem: it is running.
    """
    identity = inputs.identity(spec)
    for state in list_runs(home):
        if state.status == "finished" or not (state.run_dir / MANIFEST).is_file():
            continue
        manifest = read_manifest(state.run_dir)
        if manifest["name"] == spec.name and manifest.get("identity") == identity and manifest.get("trial") == trial:
            _require_idle(state, "or start another with --fresh")
            return state.run_id
    return None


def run_to_resume(home: Path, text: str) -> Path:
    """The directory of the run that `text` names and that can go on.

    Raises:
      UserError: there is none, or it needs nothing more.
      EnvironmentProblem: it is running.
    """
    run_dir = find_run(home, text)
    manifest, state = read_manifest(run_dir), run_status(run_dir)
    if manifest["kind"] != "train":
        raise UserError(f"{run_dir.name} is no training run but kind {manifest['kind']!r}: only training can go on")
    if state.status == "finished":
        raise UserError(f"{run_dir.name} has finished: there is nothing to resume (`tunix-lab run SPEC` makes a new run)")
    if "inputs" not in manifest:
        raise UserError(f"{run_dir.name} was begun by an older version, which did not record what it takes to go on: start anew")
    _require_idle(state, "then try again")
    return run_dir


def require_same(manifest: dict[str, Any], spec: ExperimentSpec, inputs: Inputs) -> None:
    """Refuses to go on with a run that began with something else.

    Raises:
      UserError: it did; what differs is named.
    """
    if manifest["identity"] == inputs.identity(spec):
        return
    began, now = manifest["inputs"], inputs.described()
    changed = [name for name in sorted(began.keys() | now.keys()) if began.get(name) != now.get(name)]
    shown = ", ".join(f"{name} ({_short(began.get(name))} then, {_short(now.get(name))} now)" for name in changed[:FAULTS_SHOWN])
    raise UserError(
        f"{manifest['run_id']} cannot go on: it began with another {shown or 'spec'}. Restore what it began with "
        "(`dvc checkout`, git), or start a new run"
    )


def _short(digest: str | None) -> str:
    return "nothing" if digest is None else digest[:12]


def _require_idle(state: RunState, remedy: str) -> None:
    if state.status == "running":
        raise EnvironmentProblem(
            f"this experiment is running already as {state.run_id} (pid {state.pid} on {state.host}): wait for it or stop it, "
            f"{remedy}"
        )
