"""Works on a sweep: claims trials, runs each in a process of its own, and records how they end.

A trial's process that crashes, is killed or runs out of memory takes nothing else with it. Trials are stopped as runs are, by
SIGTERM or SIGUSR1, upon which they save; the same command goes on with them from there.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunix_lab.errors import Stopped
from tunix_lab.lab.record.journal import Journal, run_status
from tunix_lab.lab.record.redaction import Redactor
from tunix_lab.lab.sweeps.bound_process import bound
from tunix_lab.lab.sweeps.queue import Claim, Entry, Outcome, Queue, left_by_run, read_outcome
from tunix_lab.lab.sweeps.results import SettingResult, ranked, setting_results, write_results
from tunix_lab.lab.sweeps.space import trials_of
from tunix_lab.lab.sweeps.sweep import SPEC, Plan
from tunix_lab.lab.sweeps.tpe import Tried, suggest
from tunix_lab.lab.tracking.sync import start_follower, wait_follower
from tunix_lab.spec import LabSettings, tracking_uri

TUNIX_LAB = (sys.executable, "-c", "from tunix_lab.cli.main import main; main()")
_LOOK_SECONDS = 0.2
_MESSAGE_LENGTH = 300
_LOG_TAIL = 4000
_TRY_AGAIN = 75  # see `Stopped`: a stop file or a time budget, not a mistake of the trial
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the same as a run knows
_STOPS = {sign * signum + offset for signum in _SIGNALS for sign, offset in ((1, 128), (-1, 0))}
# Batch systems send USR1 to every process ahead of their time limit: a trial may have it before its worker, or alone.
_WARNED = {128 + signal.SIGUSR1, -signal.SIGUSR1}


class Worker:
    """One of the processes that work on a sweep.

    Args:
      sweep_dir: the sweep's directory, see `sweep.prepare`.
      home: the project folder.
      settings: tracking address.
      jobs: trials side by side.
      command: what `run SPEC --set … --out DIR` is added to.
    """

    def __init__(
        self, sweep_dir: Path, home: Path, settings: LabSettings, *, jobs: int = 1, command: Sequence[str] = TUNIX_LAB
    ) -> None:
        self.sweep_dir = sweep_dir
        self.home = home
        self.settings = settings
        self.jobs = jobs
        self.command = list(command)
        self.queue = Queue(sweep_dir)
        self._active: list[tuple[Claim, subprocess.Popen[bytes]]] = []
        self._journal: Journal | None = None
        self._follower: subprocess.Popen[bytes] | None = None
        self._told: dict[int, str] = {}
        self._ended_early: str | None = None

    def work(self) -> list[SettingResult]:
        """Works until every trial has ended, by whomever, and returns the ranking.

        Raises:
          Stopped: SIGINT, SIGTERM or SIGUSR1 came, or a stop file, a time budget or SIGUSR1 ended a trial; this worker's
            trials have saved and wait again.
        """
        with noted_signals() as received, contextlib.ExitStack() as record:
            while True:
                self._reap(stopping=bool(received))  # whoever sent us a signal may have sent it to the trials too
                if received or self._ended_early is not None:
                    self._stop(received)
                    raise self._stopped(received)
                self._lead(record)
                while len(self._active) < self.jobs and (claim := self._next()) is not None:
                    self._start(claim)
                entries = self.queue.entries()
                self._tell(entries)
                if self._is_done(entries) and (self._journal is not None or run_status(self.sweep_dir).status == "running"):
                    break
                time.sleep(_LOOK_SECONDS)
            results = self._finish(entries)
        if self._follower is not None:
            wait_follower(self._follower, self.settings.sync_drain_seconds)
        return results

    def _next(self) -> Claim | None:
        """A trial to run now; None if none waits (of TPE: and none is to be chosen)."""
        claim = self.queue.claim()
        if claim is not None or Plan.read(self.sweep_dir).space.method != "tpe":
            return claim
        with self.queue.alone():
            plan = Plan.read(self.sweep_dir)
            results = setting_results(self.queue.entries(), plan.ranking.metric)
            if len(results) >= plan.space.settings:
                return None
            tried = [Tried(r.values, r.mean, r.count("waiting", "running") > 0) for r in results]
            values = suggest(plan.space, tried, higher_is_better=plan.ranking.higher_is_better)
            self.queue.add(trials_of(plan.space, [values], first=len(results)))
        return self.queue.claim()

    def _is_done(self, entries: Sequence[Entry]) -> bool:
        space = Plan.read(self.sweep_dir).space
        chosen = len({entry.trial.setting for entry in entries})
        return all(entry.outcome is not None for entry in entries) and (space.method != "tpe" or chosen >= space.settings)

    def _start(self, claim: Claim) -> None:
        trial = claim.trial
        left = left_by_run(claim.out)
        if left is not None:  # its worker was gone before it could record that the run had finished
            claim.settle(Outcome("finished", None, None, *left))
            return
        overrides = [part for text in trial.overrides() for part in ("--set", text)]
        command = [*self.command, "run", str(self.sweep_dir / SPEC), *overrides, "--out", str(claim.out)]
        variables = {"TUNIX_LAB_TRIAL": f"{self.sweep_dir.name}/{trial.number}", "TUNIX_LAB_HOME": str(self.home)}
        claim.out.mkdir(exist_ok=True)
        _say(f"trial {trial.number}: {' '.join(trial.overrides())}")
        with open(claim.log, "ab") as log:
            process = subprocess.Popen(
                bound(command),
                cwd=self.home,
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then asks its trials to save
                pass_fds=(claim.lock.fileno(),),  # the trial stays claimed while its run lives, also without us
            )
        self._active.append((claim, process))

    def _reap(self, *, stopping: bool) -> None:
        for claim, process in list(self._active):
            code = process.poll()
            if code is None:
                continue
            self._active.remove((claim, process))
            if code == _TRY_AGAIN or code in _WARNED:  # what ended it would end the next one too
                self._ended_early = _last_line(claim.log) if code > 0 else "ended by SIGUSR1"
            if code == _TRY_AGAIN or code in _WARNED or (stopping and code in _STOPS | {-signal.SIGKILL}):
                claim.release()
                continue
            outcome = read_outcome(claim.out, code) if code == 0 else Outcome("failed", code, _why(code, claim.log))
            claim.settle(outcome)
            if outcome.status == "failed":
                _say(f"trial {claim.trial.number} failed: {outcome.message} (log: {claim.log})")

    def _stop(self, received: Sequence[int]) -> None:
        """Asks the trials to save and waits for them; after a second signal they end at once."""
        if self._active:
            _say(f"stopping {len(self._active)} trials, which save first; once more ends them at once")
        for _, process in self._active:
            process.terminate()
        while self._active:
            if _insists(received):
                for _, process in self._active:
                    process.kill()
            self._reap(stopping=True)
            time.sleep(_LOOK_SECONDS / 4)

    def _stopped(self, received: Sequence[int]) -> Stopped:
        goes_on = f"`tunix-lab sweep --join {self.sweep_dir.name}` or the same command goes on"
        if received:
            return Stopped(f"stopped by {signal.Signals(received[0]).name}; {goes_on}", 128 + received[0])
        return Stopped(f"a trial was {self._ended_early}\n{goes_on}")

    def _lead(self, record: contextlib.ExitStack) -> None:
        """Takes the sweep's journal if nobody has it: somebody must say that the sweep runs, and how it ended."""
        if self._journal is not None or run_status(self.sweep_dir).status == "running":
            return
        self._journal = record.enter_context(Journal.open(self.sweep_dir))
        if self.settings.replicates:
            self._follower = start_follower(self.sweep_dir, tracking_uri(self.settings, self.home))

    def _tell(self, entries: Sequence[Entry]) -> None:
        """Journals what has changed since the last look."""
        now = {entry.trial.number: entry.status for entry in entries}
        if self._journal is None or now == self._told:
            return
        for entry in entries:
            if entry.outcome is not None and self._told.get(entry.trial.number) != entry.status:
                ended = {"run_id": entry.outcome.run_id, "message": entry.outcome.message}
                self._journal.event("trial", number=entry.trial.number, status=entry.status, **ended)
        self._told = now
        statuses = list(now.values())
        values: dict[str, float] = {f"sweep/{status}": statuses.count(status) for status in ("finished", "failed")}
        ranking = Plan.read(self.sweep_dir).ranking
        best = ranked(setting_results(entries, ranking.metric), ranking)
        if best and best[0].mean is not None:
            values["sweep/best"] = best[0].mean
        self._journal.metrics(statuses.count("finished") + statuses.count("failed"), {"sweep/trials": len(statuses), **values})

    def _finish(self, entries: Sequence[Entry]) -> list[SettingResult]:
        plan = Plan.read(self.sweep_dir)
        if self._journal is None:  # another worker writes them
            return ranked(setting_results(entries, plan.ranking.metric), plan.ranking)
        results = write_results(self.sweep_dir, entries, plan.space.parsed(), plan.ranking, plan.name)
        failed = sum(entry.status == "failed" for entry in entries)
        if failed == len(entries):
            self._journal.finish("failed", f"all {failed} trials failed")
        return results


def _why(code: int, log: Path) -> str:
    """Why a trial's process ended so, in one line."""
    last = _last_line(log)
    if code == -signal.SIGKILL:
        return f"killed by SIGKILL, as the kernel does when memory runs out; last it said: {last}"
    return f"killed by {signal.Signals(-code).name}; last it said: {last}" if code < 0 else f"exit code {code}: {last}"


def _last_line(log: Path) -> str:
    """What a trial said last, without secrets: it goes into the records of the sweep."""
    content = log.read_bytes().rstrip()
    begin = content.rfind(b"\n", 0, max(len(content) - _LOG_TAIL, 0)) + 1  # of a whole line: a cut secret is not known as one
    lines = Redactor.of_process().text(content[begin:].decode("utf-8", "replace")).strip().splitlines()
    return lines[-1][:_MESSAGE_LENGTH] if lines else "it printed nothing"


def _insists(received: Sequence[int]) -> bool:
    """Whether a signal came once more. The SIGTERM that follows a batch system's SIGUSR1 is the same request."""
    return len(received) > 1 + (received[:2] == [signal.SIGUSR1, signal.SIGTERM])


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Within it, the signals that stop a worker do nothing but join the list."""
    received: list[int] = []

    def note(signum: int, frame: Any) -> None:
        received.append(signum)

    before = {signum: signal.signal(signum, note) for signum in _SIGNALS}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
