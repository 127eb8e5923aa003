"""Proves for one experiment that a killed run, resumed, is the run that was not killed; and says so in a certificate."""

import dataclasses
import datetime
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tunix_lab.errors import EnvironmentProblem, UserError
from tunix_lab.lab.record.git_state import git_state
from tunix_lab.lab.record.jsonl import write_atomically
from tunix_lab.lab.record.run_state import FINGERPRINTS, MANIFEST, read_events, read_manifest
from tunix_lab.lab.same_run import Check, compare, read_outcome
from tunix_lab.spec import ExperimentSpec, resolved_yaml, resume_hash
from tunix_lab.spec.algorithm import Reinforcement
from tunix_lab.spec.rl_checks import updates_per_rollout

CERTIFICATE = "certificate.json"
COMMAND = (sys.executable, "-c", "from tunix_lab.cli.main import main; main()")
_NOT_SHOWN = (".git", "runs", "checkpoints", "mlflow.db", "mlflow.db-wal", "mlflow.db-shm", "mlflow.db.lock", "mlartifacts")
_LOOK_S = 0.002
_PATIENCE_S = 3600.0


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What was compared, and with what outcome.

    Attributes:
      run_id: of the run that was killed and resumed; it lies in the project's runs.
      name: of the experiment.
      resume_hash: identity of the mathematics that was run (see `spec.resume_hash`), shortened to `steps` updates.
      steps: updates of either run.
      killed_after: last updates that were journaled before each kill.
      resumed_from: steps of the checkpoints that the attempts after the kills began with.
      checks: see `same_run.Check`.
      made: date and time, UTC.
      versions: of the packages that computed it.
    """

    run_id: str
    name: str
    resume_hash: str
    steps: int
    killed_after: list[int]
    resumed_from: list[int]
    checks: list[Check]
    made: str
    versions: dict[str, str]

    @property
    def holds(self) -> bool:
        """Whether everything was equal, and there was something to compare."""
        compared = {check.what for check in self.checks if check.compared}
        return {"batches", "leaves", "weights"} <= compared and all(check.different == 0 for check in self.checks)

    def to_json(self) -> bytes:
        """The certificate with its own sha256, by which a later change of it is noticed."""
        content = dataclasses.asdict(self) | {"holds": self.holds}
        text = json.dumps(content, sort_keys=True)
        return (json.dumps(content | {"sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1) + "\n").encode()


def verify_resume(spec: ExperimentSpec, home: Path, *, kill_after: Sequence[int]) -> Certificate:
    """Runs the experiment whole, and again with a SIGKILL after each of the given updates, and compares the two.

    Both runs work on a view of the project of their own, so that no run of the project can be mistaken for theirs. The killed
    run is then moved to the project's runs, with the certificate in it.

    Args:
      spec: the experiment, of as many steps as shall be compared; see `shortened`.
      home: the project folder.
      kill_after: updates after which the run is killed, rising.

    Raises:
      UserError: the run ends before it can be killed.
      EnvironmentProblem: a run failed; its message stands above.
    """
    with tempfile.TemporaryDirectory(prefix="verify-resume-") as folder:
        views = [show_view(home, Path(folder) / name) for name in ("whole", "killed")]
        for view in views:
            (view / "verify.yaml").write_text(resolved_yaml(spec))
        whole = _finish(views[0])
        killed_after = [_kill(views[1], step) for step in kill_after]
        killed = _finish(views[1])
        checks = compare(read_outcome(whole, views[0]), read_outcome(killed, views[1]))
        manifest = read_manifest(killed)
        certificate = Certificate(
            run_id=killed.name,
            name=spec.name,
            resume_hash=resume_hash(spec),
            steps=spec.training.max_steps,
            killed_after=killed_after,
            resumed_from=[event["step"] for event in read_events(killed) if event["kind"] == "resumed"],
            checks=checks,
            made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            versions=manifest["versions"],
        )
        write_atomically(killed / CERTIFICATE, certificate.to_json())
        git = git_state(home)
        described = manifest["git"] | {"commit": git.commit, "branch": git.branch, "dirty": git.dirty}
        tags = manifest["tags"] | git.tags() | {"lab.resume_verified": str(certificate.holds).lower()}
        write_atomically(
            killed / MANIFEST, json.dumps(manifest | {"kind": "verify-resume", "git": described, "tags": tags}, indent=1).encode()
        )
        shutil.move(killed, home / "runs" / killed.name)
    return certificate


def shortened(spec: ExperimentSpec, steps: int) -> list[str]:
    """Overrides that make an experiment so short, and let everything that happens now and then happen within it.

    Raises:
      UserError: it cannot be so short.
    """
    unit = updates_per_rollout(spec) if isinstance(spec.algorithm, Reinforcement) else 1  # nothing happens within a rollout
    if steps % unit:
        raise UserError(f"--steps: must be a multiple of {unit}, the updates made from one rollout; got {steps}")
    third, quarter = (max(unit, steps // parts // unit * unit) for parts in (3, 4))
    overrides = [
        f"training.max_steps={steps}",
        f"training.eval_every={third}",
        f"checkpoint.every={quarter}",
        f"optimizer.schedule.warmup_steps={min(spec.optimizer.schedule.warmup_steps, third)}",
        "training.log_every=1",
        "training.fingerprint_every=1",
        "training.budget=null",
        "checkpoint.keep_best=null",
    ]
    return overrides if spec.samples is None else [*overrides, f"samples.every={third}"]


def show_view(home: Path, view: Path) -> Path:
    """A folder that looks like the project but has no runs and no checkpoints; to git all its folders would be missing."""
    view.mkdir()
    for path in home.iterdir():
        if path.name not in _NOT_SHOWN:
            (view / path.name).symlink_to(path)
    return view


def _start(view: Path) -> "subprocess.Popen[bytes]":
    environment = os.environ | {"TUNIX_LAB_HOME": str(view), "TUNIX_LAB_SYNC": "off"}
    return subprocess.Popen([*COMMAND, "run", "verify.yaml"], cwd=view, env=environment, stdout=subprocess.DEVNULL)


def _finish(view: Path) -> Path:
    """Runs, or goes on, to the end; returns the run directory."""
    if code := _start(view).wait():
        raise EnvironmentProblem(f"the run that should be verified ended with exit code {code}; its message stands above")
    (run_dir,) = (view / "runs").iterdir()
    return run_dir


def _kill(view: Path, step: int) -> int:
    """Starts, or goes on, and sends SIGKILL as soon as update `step` is journaled; returns the last one that was."""
    process, deadline = _start(view), time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        if _last_step(view) >= step:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(_LOOK_S)
    if process.wait() == -signal.SIGKILL:
        return _last_step(view)
    if process.returncode:
        raise EnvironmentProblem(f"the run that should be killed failed with exit code {process.returncode}; see above")
    raise UserError(f"the run ended before it could be killed after step {step}: give it more --steps")


def _last_step(view: Path) -> int:
    """The last update that is journaled, 0 before the first; reads the end of the file alone, to be quick."""
    found = list((view / "runs").glob(f"*/{FINGERPRINTS}"))
    lines = found[0].read_bytes()[-65536:].splitlines() if found else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except ValueError:  # half written, or cut off at the front
            continue
    return 0
